//! Replay window of a session epoch (RFC 6479's ring of words): a counter is accepted once, and only while it is less
//! than [`WINDOW`] behind the highest one accepted.

/// Counters the window remembers.
pub const WINDOW: u64 = 8192;
/// One word more than the window needs, so that moving forward clears whole words.
const WORDS: usize = WINDOW as usize / 64 + 1;

/// Why a counter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Seen before.
    Replayed,
    /// Too far behind.
    TooOld,
}

/// The window. It begins empty: counter 0 is acceptable.
#[derive(Clone, Debug)]
pub struct Window {
    /// One more than the highest accepted; 0 when nothing was.
    next: u64,
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            next: 0,
            words: [0; WORDS],
        }
    }
}

impl Window {
    /// Whether the counter would be accepted. Changes nothing.
    pub fn check(&self, counter: u64) -> Result<(), Refusal> {
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > WINDOW {
            return Err(Refusal::TooOld);
        }
        let (word, bit) = place(counter);
        if self.words[word] & bit != 0 {
            Err(Refusal::Replayed)
        } else {
            Ok(())
        }
    }

    /// Accepts the counter of an authenticated packet; refuses as [`Window::check`] does.
    pub fn accept(&mut self, counter: u64) -> Result<(), Refusal> {
        self.check(counter)?;
        if counter >= self.next {
            let from = if self.next == 0 {
                0
            } else {
                (self.next - 1) / 64 + 1
            };
            let to = counter / 64;
            if self.next == 0 || to >= from {
                let clear = (to - from.min(to) + 1).min(WORDS as u64);
                for index in 0..clear {
                    self.words[((to - index) % WORDS as u64) as usize] = 0;
                }
            }
            self.next = counter + 1;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
        Ok(())
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_edges() {
        let mut window = Window::default();
        assert_eq!(window.accept(0), Ok(()));
        assert_eq!(window.accept(0), Err(Refusal::Replayed));
        assert_eq!(window.accept(WINDOW), Ok(()));
        assert_eq!(window.accept(0), Err(Refusal::TooOld));
        assert_eq!(window.accept(1), Ok(()));
        assert_eq!(window.accept(1), Err(Refusal::Replayed));
        assert_eq!(window.accept(u64::MAX >> 9), Ok(()));
        assert_eq!(window.accept(WINDOW), Err(Refusal::TooOld));
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((0u64..3, 0u64..20_000), 1..400)) {
            let mut window = Window::default();
            let mut seen = HashSet::new();
            let mut highest: Option<u64> = None;
            for (kind, size) in steps {
                let counter = match (kind, highest) {
                    (0, Some(highest)) => highest + size % 70,
                    (1, Some(highest)) => highest.saturating_sub(size % 8300),
                    (_, highest) => highest.unwrap_or(0) / 2 + size,
                };
                let want = match highest {
                    Some(highest) if counter + WINDOW <= highest => Err(Refusal::TooOld),
                    _ if seen.contains(&counter) => Err(Refusal::Replayed),
                    _ => Ok(()),
                };
                proptest::prop_assert_eq!(window.check(counter), want);
                proptest::prop_assert_eq!(window.accept(counter), want);
                if want.is_ok() {
                    seen.insert(counter);
                    highest = Some(highest.map_or(counter, |highest| highest.max(counter)));
                }
            }
        }
    }
}
