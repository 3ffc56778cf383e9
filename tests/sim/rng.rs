//! Owns all randomness of the simulator: one xoshiro256++ per concern, forked from the seed by splitmix64.
//!
//! The same seed gives the same run on every machine: nothing else in the simulator may be random, and
//! no hash map with a random state may be iterated.

/// A small, fast, seeded generator (xoshiro256++).
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    pub fn new(seed: u64) -> Rng {
        let mut mixer = seed;
        let mut next = || {
            mixer = mixer.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixer;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Rng { state: [next(), next(), next(), next()] }
    }

    /// A generator of its own for another concern, so that a draw more here changes nothing there.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.u64())
    }

    pub fn u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a draw from nothing");
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Log-uniform in `low..=high`: small values as often as large ones, whatever the scale.
    pub fn scale(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "a scale from {low} to {high}");
        let bits = self.range(u64::from(low.max(1).ilog2()), u64::from(high.max(1).ilog2()));
        let floor = (1u64 << bits).max(low);
        let ceiling = ((1u64 << bits) * 2 - 1).min(high);
        self.range(floor, ceiling.max(floor))
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        let (words, tail) = out.as_chunks_mut::<8>();
        words.iter_mut().for_each(|word| *word = self.u64().to_le_bytes());
        if !tail.is_empty() {
            let word = self.u64().to_le_bytes();
            tail.copy_from_slice(&word[..tail.len()]);
        }
    }
}

#[test]
fn same_seed_draws_the_same_and_stays_in_range() {
    let (mut a, mut b) = (Rng::new(7), Rng::new(7));
    for _ in 0..1000 {
        let low = a.below(50);
        assert_eq!(low, b.below(50));
        let (x, y) = (a.scale(3, 5000), b.scale(3, 5000));
        assert_eq!(x, y);
        assert!((3..=5000).contains(&x));
        assert!((10..=12).contains(&a.range(10, 12)) && (10..=12).contains(&b.range(10, 12)));
    }
    assert_ne!(Rng::new(1).u64(), Rng::new(2).u64());
}
