//! The shapes of the blocks that the server has lately rejected, which are not merged with others.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::protocol::command::reader::CommandReader;
use crate::sync::lock;

/// Time for which blocks like a rejected one are sent in a group of their own.
const APART_FOR: Duration = Duration::from_secs(1);

/// Maximum number of shapes that are remembered.
const MOST_SHAPES: usize = 16;

/// The shapes of the blocks that the server has lately rejected: the names of their commands, and the
/// number of arguments. A block like them would have the others of its group sent again.
#[derive(Default)]
pub(crate) struct RejectedShapes {
    /// Whether there may be any: most groups look no further.
    has_any: AtomicBool,
    shapes: Mutex<Vec<(u64, Instant)>>,
}

impl RejectedShapes {
    pub(crate) fn add(&self, block: &[u8]) {
        let now = Instant::now();
        let mut shapes = lock(&self.shapes);
        shapes.retain(|(_, until)| *until > now);
        if shapes.len() < MOST_SHAPES {
            shapes.push((shape(block), now + APART_FOR));
        }
        self.has_any.store(true, Ordering::Release);
    }

    pub(crate) fn has(&self, block: &[u8]) -> bool {
        if !self.has_any.load(Ordering::Acquire) {
            return false;
        }
        let now = Instant::now();
        let mut shapes = lock(&self.shapes);
        shapes.retain(|(_, until)| *until > now);
        self.has_any.store(!shapes.is_empty(), Ordering::Release);
        let of_block = shape(block);
        shapes.iter().any(|(shape, _)| *shape == of_block)
    }
}

fn shape(block: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for args in CommandReader::new(block).flatten() {
        (args.first(), args.len()).hash(&mut hasher);
    }
    hasher.finish()
}
