//! How many bytes a second may go to a peer, by the time of day.

/// Minutes of a day.
pub const DAY_MINUTES: u16 = 24 * 60;

/// The days of a week as they are written, from the first one on.
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A time of the week, as the clock on the wall of this host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime {
    /// 0 is Monday.
    pub day: usize,
    /// Of the day, 0 to 1439.
    pub minute: u16,
}

/// Hours in which another limit holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// The days on which they begin, Monday first.
    pub days: [bool; 7],
    /// The first minute of the day.
    pub from: u16,
    /// The minute after the last one. Not after `from`: of the next day.
    pub to: u16,
    /// Bytes a second; none: as fast as it goes.
    pub limit: Option<u64>,
}

impl Hours {
    fn contain(&self, time: WallTime) -> bool {
        let yesterday = (time.day + 6) % 7;
        if self.from < self.to {
            return self.days[time.day] && (self.from..self.to).contains(&time.minute);
        }
        self.days[time.day] && time.minute >= self.from || self.days[yesterday] && time.minute < self.to
    }
}

/// What may go to a peer, bytes a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Outside of all hours.
    pub limit: Option<u64>,
    /// The first one that fits the time counts.
    pub hours: Vec<Hours>,
}

impl RateLimit {
    /// What holds at a time.
    #[must_use]
    pub fn at(&self, time: WallTime) -> Option<u64> {
        self.hours.iter().find(|hours| hours.contain(time)).map_or(self.limit, |hours| hours.limit)
    }

    /// The least that ever holds, if there is a limit at any time.
    #[must_use]
    pub fn least(&self) -> Option<u64> {
        self.hours.iter().map(|hours| hours.limit).chain([self.limit]).flatten().min()
    }
}

/// The minute of the day that `"08:30"` means; `"24:00"` is the end of a day.
#[must_use]
pub fn minute_of_day(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number =
        |text: &str| text.parse().ok().filter(|_| text.len() == 2 && text.bytes().all(|it| it.is_ascii_digit()));
    let (hour, minute): (u16, u16) = (number(hour)?, number(minute)?);
    (minute < 60 && hour * 60 + minute <= DAY_MINUTES).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(days: &[usize], from: &str, to: &str, limit: Option<u64>) -> Hours {
        let minute = |text| minute_of_day(text).expect("a time");
        Hours { days: std::array::from_fn(|day| days.contains(&day)), from: minute(from), to: minute(to), limit }
    }

    fn at(limit: &RateLimit, day: usize, time: &str) -> Option<u64> {
        limit.at(WallTime { day, minute: minute_of_day(time).expect("a time") })
    }

    #[test]
    fn the_first_hours_that_fit_count_and_outside_of_all_the_general_limit() {
        let weekdays = [0, 1, 2, 3, 4];
        let office = hours(&weekdays, "08:00", "18:00", Some(5));
        let lunch = hours(&weekdays, "12:00", "13:00", None);
        let limit = RateLimit { limit: Some(50), hours: vec![lunch, office] };
        for (day, time, wanted) in [
            (0, "07:59", Some(50)),
            (0, "08:00", Some(5)),
            (4, "12:00", None),
            (4, "13:00", Some(5)),
            (4, "17:59", Some(5)),
            (4, "18:00", Some(50)),
            (5, "10:00", Some(50)),
        ] {
            assert_eq!(at(&limit, day, time), wanted, "day {day}, {time}");
        }
        assert_eq!((limit.least(), RateLimit::default().least()), (Some(5), None));
    }

    #[test]
    fn hours_that_end_on_the_next_day_are_those_of_the_day_on_which_they_begin() {
        let night = RateLimit { limit: None, hours: vec![hours(&[6], "22:00", "06:00", Some(1))] };
        for (day, time, wanted) in [
            (6, "21:59", None),
            (6, "22:00", Some(1)),
            (0, "05:59", Some(1)),
            (0, "06:00", None),
            (0, "22:00", None),
            (6, "05:59", None),
        ] {
            assert_eq!(at(&night, day, time), wanted, "day {day}, {time}");
        }
        let whole = RateLimit { limit: None, hours: vec![hours(&[2], "00:00", "24:00", Some(1))] };
        assert_eq!((at(&whole, 2, "23:59"), at(&whole, 3, "00:00"), at(&whole, 2, "00:00")), (Some(1), None, Some(1)));
        let round = RateLimit { limit: None, hours: vec![hours(&[2], "09:00", "09:00", Some(1))] };
        assert_eq!((at(&round, 2, "08:59"), at(&round, 2, "09:00"), at(&round, 3, "08:59")), (None, Some(1), Some(1)));
    }

    #[test]
    fn a_time_of_day_is_two_and_two_digits() {
        for (text, minute) in [("00:00", 0), ("08:30", 510), ("23:59", 1439), ("24:00", 1440)] {
            assert_eq!(minute_of_day(text), Some(minute));
        }
        for text in ["", "8:30", "08:60", "24:01", "+8:00", "08:3", "0800", "08:30:00", "99:99", "é8:00"] {
            assert_eq!(minute_of_day(text), None, "{text}");
        }
    }
}
