//! Runs of small things that come and go in about the order in which they came, without a call for memory for each.
//!
//! Invariants:
//! - A run stands in one chunk, in one piece, and stays there until it is released.
//! - A chunk's memory is given back, or used again, once all of its runs are released.
//! - A run that would fill much of a chunk has one of its own, so that at most [`RUN_SHARE`] of a chunk is left empty at its
//!   end, and a large run is gone once it is released.

use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Arena<T> {
    chunks: VecDeque<Chunk<T>>,
    /// Number of the first of `chunks`. Numbers wrap around.
    first: u32,
    /// Number of the chunk that runs are put into.
    open: Option<u32>,
    /// Empty ones, to be used again.
    spare: Vec<Vec<T>>,
    chunk_len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    items: Vec<T>,
    /// Runs that aren't released.
    runs: u32,
}

/// Where things stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    chunk: u32,
    start: u32,
    len: u32,
}

impl Run {
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }
}

impl<T> Arena<T> {
    /// `chunk_len` things stand in a chunk.
    pub(crate) fn new(chunk_len: usize) -> Self {
        Self { chunks: VecDeque::new(), first: 0, open: None, spare: Vec::new(), chunk_len }
    }

    /// Puts what `write` appends into a run. That must be at most `len_max` things, and should be about as many.
    pub(crate) fn append(&mut self, len_max: usize, write: impl FnOnce(&mut Vec<T>)) -> Run {
        let number = self.chunk_for(len_max);
        let chunk = self.chunk_mut(number);
        let start = chunk.items.len();
        write(&mut chunk.items);
        let len = chunk.items.len() - start;
        debug_assert!(len <= len_max, "{len} things in a run of at most {len_max}");
        chunk.runs += 1;
        let place = |at: usize| u32::try_from(at).expect("a log entry is bounded far below four billion of anything");
        Run { chunk: number, start: place(start), len: place(len) }
    }

    pub(crate) fn get(&self, run: Run) -> &[T] {
        &self.chunk(run.chunk).items[run.start as usize..][..run.len()]
    }

    pub(crate) fn get_mut(&mut self, run: Run) -> &mut [T] {
        &mut self.chunk_mut(run.chunk).items[run.start as usize..][..run.len()]
    }

    /// Gives a run's place back. Each run is released once.
    pub(crate) fn release(&mut self, run: Run) {
        let chunk = self.chunk_mut(run.chunk);
        debug_assert!(chunk.runs > 0, "a run is released that isn't there");
        chunk.runs -= 1;
        if chunk.runs == 0 {
            self.give_back(run.chunk);
        }
    }

    /// The number of a chunk with room for so many things.
    fn chunk_for(&mut self, len: usize) -> u32 {
        if len > self.chunk_len / RUN_SHARE {
            return self.push(Vec::with_capacity(len));
        }
        if let Some(open) = self.open
            && self.chunk(open).items.len() + len <= self.chunk_len
        {
            return open;
        }
        let items = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.chunk_len));
        let open = self.push(items);
        if let Some(before) = self.open.replace(open)
            && self.chunk(before).runs == 0
        {
            self.give_back(before);
        }
        open
    }

    fn chunk(&self, number: u32) -> &Chunk<T> {
        &self.chunks[number.wrapping_sub(self.first) as usize]
    }

    fn chunk_mut(&mut self, number: u32) -> &mut Chunk<T> {
        &mut self.chunks[number.wrapping_sub(self.first) as usize]
    }

    fn push(&mut self, items: Vec<T>) -> u32 {
        self.chunks.push_back(Chunk { items, runs: 0 });
        self.first.wrapping_add(self.chunks.len() as u32 - 1)
    }

    /// Takes the memory of a chunk that has no runs, unless more are about to be put there.
    fn give_back(&mut self, number: u32) {
        if self.open == Some(number) {
            return;
        }
        let mut items = std::mem::take(&mut self.chunk_mut(number).items);
        if items.capacity() == self.chunk_len && self.spare.len() < SPARE_MAX {
            items.clear();
            self.spare.push(items);
        }
        while self.chunks.front().is_some_and(|chunk| chunk.runs == 0) && self.open != Some(self.first) {
            self.chunks.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    #[cfg(test)]
    fn things_held(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.items.capacity()).sum()
    }
}

/// A run of more than one part in this many of a chunk has a chunk of its own.
const RUN_SHARE: usize = 8;
/// Empty chunks that are kept. A log that is full needs a new one about when an old one gets free.
const SPARE_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 64;

    /// Holds an arena against plain lists, of which the oldest go first, but not in strict order.
    #[test]
    fn runs_stay_what_they_are_and_memory_goes_back() {
        let mut arena = Arena::<u32>::new(CHUNK);
        // Numbers of chunks wrap around in between.
        arena.first = u32::MAX - 20;
        let mut kept: Vec<(Run, Vec<u32>)> = Vec::new();
        let mut random = 1_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for step in 0..20_000_u32 {
            let len = if next(50) == 0 { next(300) } else { next(9) } as usize;
            let things: Vec<u32> = (0..len as u32).map(|at| step ^ at << 20).collect();
            let run = arena.append(len, |items| items.extend_from_slice(&things));
            assert_eq!(run.len(), len);
            kept.push((run, things));
            while kept.len() > 100 {
                let (run, things) = kept.remove(next(5) as usize);
                assert_eq!(arena.get(run), things);
                arena.release(run);
            }
            let large: usize =
                kept.iter().filter(|(run, _)| run.len() > CHUNK / RUN_SHARE).map(|(run, _)| run.len()).sum();
            // Small runs share chunks with others, of which some may be among the oldest few that linger.
            assert!(arena.things_held() <= large + 40 * CHUNK, "{} held", arena.things_held());
        }
        for (run, things) in kept {
            assert_eq!(arena.get_mut(run), things);
            arena.release(run);
        }
        assert!(arena.chunks.len() <= 1 && arena.things_held() <= CHUNK, "only the open chunk is left");
    }

    #[test]
    fn a_large_run_is_gone_once_it_is_released() {
        let mut arena = Arena::<u8>::new(CHUNK);
        let large = arena.append(1_000, |items| items.resize(1_000, 7));
        let small = arena.append(1, |items| items.push(1));
        let other = arena.append(2_000, |items| items.resize(2_000, 8));
        arena.release(other);
        assert_eq!(arena.things_held(), 1_000 + CHUNK);
        arena.release(large);
        assert_eq!((arena.things_held(), arena.get(small)), (CHUNK, &[1][..]));
    }
}
