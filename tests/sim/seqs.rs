//! Owns a map from seqs that are given out in ascending order, nearly without gaps: what the checkers look up most.

use farshore::core::ids::Seq;

/// Values by their seq, in the order of seqs.
#[derive(Clone, Debug)]
pub struct Seqs<T>(Vec<(Seq, T)>);

impl<T> Default for Seqs<T> {
    fn default() -> Seqs<T> {
        Seqs(Vec::new())
    }
}

impl<T> Seqs<T> {
    /// Adds the value of a seq above all others.
    pub fn push(&mut self, seq: Seq, value: T) {
        assert!(self.last().is_none_or(|last| last < seq), "seqs are added in their order");
        self.0.push((seq, value));
    }

    pub fn last(&self) -> Option<Seq> {
        self.0.last().map(|(seq, _)| *seq)
    }

    pub fn get(&self, seq: Seq) -> Option<&T> {
        let at = self.place(seq);
        self.0.get(at).filter(|(found, _)| *found == seq).map(|(_, value)| value)
    }

    /// Those from one seq to another, both included; none if the second comes first.
    pub fn range(&self, first: Seq, last: Seq) -> impl DoubleEndedIterator<Item = (Seq, &T)> {
        let from = self.place(first);
        let to = if last.0 == u64::MAX { self.0.len() } else { self.place(last.next()) };
        self.0[from.min(to)..to].iter().map(|(seq, value)| (*seq, value))
    }

    pub fn all(&self) -> impl DoubleEndedIterator<Item = (Seq, &T)> {
        self.0.iter().map(|(seq, value)| (*seq, value))
    }

    /// How many have a lower seq. Most are found at once: behind the last gap every seq is there.
    fn place(&self, seq: Seq) -> usize {
        let Some(last) = self.last() else { return 0 };
        if seq > last {
            return self.0.len();
        }
        let guess = self.0.len().checked_sub(1 + usize::try_from(last.0 - seq.0).unwrap_or(usize::MAX));
        match guess {
            Some(at) if self.0[at].0 == seq => at,
            _ => self.0.partition_point(|(it, _)| *it < seq),
        }
    }
}

#[test]
fn seqs_are_found_whatever_gaps_they_have() {
    let mut seqs = Seqs::default();
    let there = [1, 2, 3, 10, 11, 12, 40, 41];
    there.iter().for_each(|&seq| seqs.push(Seq(seq), seq * 2));
    for seq in 0..50 {
        assert_eq!(seqs.get(Seq(seq)).copied(), there.contains(&seq).then_some(seq * 2));
        for last in 0..50 {
            let found: Vec<u64> = seqs.range(Seq(seq), Seq(last)).map(|(seq, _)| seq.0).collect();
            let want: Vec<u64> = there.iter().copied().filter(|it| (seq..=last).contains(it)).collect();
            assert_eq!(found, want);
        }
    }
    assert_eq!(seqs.all().next_back(), Some((Seq(41), &82)));
}
