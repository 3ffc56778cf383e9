//! Requests in flight by a number that is never taken for another one.
//!
//! A number is an index and the generation of that index: looked up without hashing, and a number that
//! was answered before (or never given out) is not found.

/// Values in flight.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Keeps `value` and returns its number.
    pub fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("requests in flight are bounded far below 2^32")
        });
        let (generation, slot) = &mut self.slots[index as usize];
        *slot = Some(value);
        u64::from(*generation) << 32 | u64::from(index)
    }

    /// Gives the value back and retires its number.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let index = number as u32;
        let (generation, slot) = self.slots.get_mut(index as usize)?;
        if u64::from(*generation) != number >> 32 {
            return None;
        }
        let value = slot.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(index);
        Some(value)
    }

    /// The value with this number.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&T> {
        let (generation, slot) = self.slots.get(number as u32 as usize)?;
        if u64::from(*generation) == number >> 32 { slot.as_ref() } else { None }
    }

    /// As [`get`](Self::get), to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (generation, slot) = self.slots.get_mut(number as u32 as usize)?;
        if u64::from(*generation) == number >> 32 { slot.as_mut() } else { None }
    }

    /// Values in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes every value out, in no particular order.
    pub fn take_all(&mut self) -> Vec<T> {
        let numbers: Vec<u64> = (0u32..)
            .zip(&self.slots)
            .filter(|(_, (_, slot))| slot.is_some())
            .map(|(index, (generation, _))| u64::from(*generation) << 32 | u64::from(index))
            .collect();
        numbers.into_iter().filter_map(|number| self.remove(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_number_is_never_found_again() {
        let mut slots = Slots::default();
        let first = slots.insert("a");
        assert_eq!(slots.remove(first), Some("a"));
        assert_eq!(slots.remove(first), None);
        let second = slots.insert("b");
        assert_ne!(first, second);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&"b"));
        assert_eq!(slots.remove(77), None);
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.take_all(), ["b"]);
        assert!(slots.is_empty());
    }
}
