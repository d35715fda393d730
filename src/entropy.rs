//! The operating system's random bytes, several ids at a time.

use std::cell::RefCell;
use std::process;

use rand::TryRng;
use rand::rngs::{SysError, SysRng};

/// The bytes of one session id.
pub(crate) type Draw = [u8; 32];

/// So many ids are paid for by one call of the operating system.
const DRAWS: usize = 16;

/// What this thread has drawn and not handed out. Every byte is handed out once, and wiped here as it
/// is.
///
/// A process that forks leaves its child a copy of this, and the same bytes would be handed out
/// twice. So what is here belongs to the process that drew it, by its id, and nobody else takes it;
/// asking for the id is a call of the operating system, too, but a much cheaper one. (An id that
/// comes back to a descendant needs every process in between to be gone, and this thread not to have
/// drawn in any of them.)
struct Pool {
    process: u32,
    left: usize,
    bytes: [Draw; DRAWS],
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

/// 32 bytes from the operating system's generator.
pub(crate) fn draw() -> Result<Draw, SysError> {
    POOL.with_borrow_mut(|pool| pool.draw(process::id()))
}

impl Pool {
    const fn new() -> Self {
        Self {
            process: 0,
            left: 0,
            bytes: [[0; 32]; DRAWS],
        }
    }

    fn draw(&mut self, process: u32) -> Result<Draw, SysError> {
        if self.left == 0 || self.process != process {
            self.left = 0;
            SysRng.try_fill_bytes(self.bytes.as_flattened_mut())?;
            (self.process, self.left) = (process, DRAWS);
        }
        self.left -= 1;
        Ok(std::mem::take(&mut self.bytes[self.left]))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.bytes.as_flattened_mut().fill(0);
        // Or else the compiler might find that nobody looks at it.
        std::hint::black_box(&mut self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_handed_out_twice_nor_kept() {
        let mut pool = Pool::new();
        let mut seen = std::collections::HashSet::new();
        for n in 1..=3 * DRAWS {
            assert!(seen.insert(pool.draw(1).unwrap()));
            assert!(pool.bytes[pool.left..].iter().all(|draw| *draw == [0; 32]));
            assert_eq!(pool.left, (DRAWS - n % DRAWS) % DRAWS);
        }
        assert!(!seen.contains(&[0; 32]));
    }

    #[test]
    fn a_child_never_hands_out_what_its_parent_has_drawn() {
        let mut parent = Pool::new();
        parent.draw(1).unwrap();
        let mut child = Pool {
            bytes: parent.bytes,
            ..parent
        };
        let inherited: Vec<Draw> = child.bytes[..child.left].to_vec();
        assert_eq!(inherited.len(), DRAWS - 1);
        for _ in 0..2 * DRAWS {
            assert!(!inherited.contains(&child.draw(2).unwrap()));
        }
        // The parent goes on with them.
        assert!(inherited.contains(&parent.draw(1).unwrap()));
    }

    #[test]
    fn threads_draw_apart() {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..100).map(|_| draw().unwrap()).collect::<Vec<_>>()))
            .collect();
        let all: Vec<_> = threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
