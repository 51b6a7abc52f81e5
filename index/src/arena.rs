//! Storage for many small things by number: it grows by a chunk at a time, so that no step copies what is there, and gives chunks
//! back that hold nothing any more.

use crate::machine::prefetch;

/// Things of a chunk. A power of two.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;

/// Numbers its things itself, and uses a number again once its thing is gone.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks that have a vacant place, or may have one.
    open: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    things: Vec<T>,
    vacant: Vec<u16>,
    /// Whether it stands in `open`.
    is_open: bool,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), open: Vec::new(), len: 0 }
    }
}

impl<T: Default> Arena<T> {
    pub(crate) fn insert(&mut self, thing: T) -> u32 {
        self.len += 1;
        while let Some(&at) = self.open.last() {
            let chunk = &mut self.chunks[at as usize];
            if let Some(place) = chunk.vacant.pop() {
                chunk.things[place as usize] = thing;
                return at << CHUNK_BITS | u32::from(place);
            }
            if chunk.things.len() < CHUNK {
                // The first chunk grows as a vector does, so that few things take little.
                if chunk.things.capacity() == 0 && at > 0 {
                    chunk.things.reserve_exact(CHUNK);
                }
                chunk.things.push(thing);
                return at << CHUNK_BITS | (chunk.things.len() as u32 - 1);
            }
            chunk.is_open = false;
            self.open.pop();
        }
        let at = self.chunks.len() as u32;
        let mut things = Vec::with_capacity(if at == 0 { 4 } else { CHUNK });
        things.push(thing);
        self.chunks.push(Chunk { things, vacant: Vec::new(), is_open: true });
        self.open.push(at);
        at << CHUNK_BITS
    }

    pub(crate) fn remove(&mut self, number: u32) -> T {
        self.len -= 1;
        let at = number >> CHUNK_BITS;
        let chunk = &mut self.chunks[at as usize];
        let place = number as usize & (CHUNK - 1);
        let thing = std::mem::take(&mut chunk.things[place]);
        chunk.vacant.push(place as u16);
        if chunk.vacant.len() == chunk.things.len() {
            chunk.things = Vec::new();
            chunk.vacant = Vec::new();
        }
        if !chunk.is_open {
            chunk.is_open = true;
            self.open.push(at);
        }
        thing
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl<T> Arena<T> {
    #[inline]
    pub(crate) fn get(&self, number: u32) -> &T {
        &self.chunks[(number >> CHUNK_BITS) as usize].things[number as usize & (CHUNK - 1)]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> &mut T {
        &mut self.chunks[(number >> CHUNK_BITS) as usize].things[number as usize & (CHUNK - 1)]
    }
}

/// Things by numbers that others give.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    chunks: Vec<SlotChunk<T>>,
    len: usize,
}

#[derive(Debug)]
struct SlotChunk<T> {
    things: Box<[T]>,
    used: usize,
}

/// A value that stands for "nothing here".
pub(crate) trait Vacant: Clone {
    const VACANT: Self;
    fn is_vacant(&self) -> bool;
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Vacant> Slots<T> {
    pub(crate) fn put(&mut self, number: u32, thing: T) {
        let at = (number >> CHUNK_BITS) as usize;
        while self.chunks.len() <= at {
            self.chunks.push(SlotChunk { things: Box::default(), used: 0 });
        }
        let chunk = &mut self.chunks[at];
        if chunk.things.is_empty() {
            chunk.things = vec![T::VACANT; CHUNK].into_boxed_slice();
        }
        let place = &mut chunk.things[number as usize & (CHUNK - 1)];
        if place.is_vacant() {
            chunk.used += 1;
            self.len += 1;
        }
        *place = thing;
    }

    pub(crate) fn take(&mut self, number: u32) -> Option<T> {
        let chunk = self.chunks.get_mut((number >> CHUNK_BITS) as usize)?;
        let place = chunk.things.get_mut(number as usize & (CHUNK - 1)).filter(|place| !place.is_vacant())?;
        let thing = std::mem::replace(place, T::VACANT);
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == 0 {
            chunk.things = Box::default();
        }
        Some(thing)
    }

    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        let chunk = self.chunks.get((number >> CHUNK_BITS) as usize)?;
        chunk.things.get(number as usize & (CHUNK - 1)).filter(|thing| !thing.is_vacant())
    }

    /// Announces a look at a number.
    #[inline]
    pub(crate) fn prefetch(&self, number: u32) {
        let chunk = self.chunks.get((number >> CHUNK_BITS) as usize);
        chunk.and_then(|chunk| chunk.things.get(number as usize & (CHUNK - 1))).into_iter().for_each(prefetch);
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut((number >> CHUNK_BITS) as usize)?;
        chunk.things.get_mut(number as usize & (CHUNK - 1)).filter(|thing| !thing.is_vacant())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks
            .iter()
            .enumerate()
            .flat_map(|(at, chunk)| {
                let numbered = chunk.things.iter().enumerate();
                numbered.map(move |(place, thing)| ((at * CHUNK + place) as u32, thing))
            })
            .filter(|(_, thing)| !thing.is_vacant())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_chunks_given_back() {
        let mut arena = Arena::default();
        let numbers: Vec<u32> = (0..5_000_u64).map(|thing| arena.insert(thing)).collect();
        assert!(numbers.iter().zip(0..).all(|(number, thing)| *arena.get(*number) == thing));
        for number in &numbers[1_024..4_096] {
            arena.remove(*number);
        }
        assert_eq!(arena.len(), 5_000 - 3_072);
        assert!(arena.chunks[1..4].iter().all(|chunk| chunk.things.capacity() == 0));
        let again: Vec<u32> = (0..3_072_u64).map(|thing| arena.insert(thing)).collect();
        assert!(again.iter().all(|number| (*number as usize) < 5 * CHUNK));
        assert!(again.iter().zip(0..).all(|(number, thing)| *arena.get(*number) == thing));
        assert_eq!(*arena.get(numbers[0]), 0);
    }

    impl Vacant for u64 {
        const VACANT: u64 = u64::MAX;
        fn is_vacant(&self) -> bool {
            *self == u64::MAX
        }
    }

    #[test]
    fn slots_are_found_and_emptied() {
        let mut slots = Slots::default();
        slots.put(70_000, 1_u64);
        slots.put(3, 2);
        assert_eq!((slots.get(70_000), slots.get(3), slots.get(4), slots.len()), (Some(&1), Some(&2), None, 2));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(3, &2), (70_000, &1)]);
        assert_eq!((slots.take(70_000), slots.take(70_000), slots.take(9)), (Some(1), None, None));
        assert!(slots.chunks[70_000 >> CHUNK_BITS].things.is_empty());
    }
}
