//! A small open table of things that have a number each.
//!
//! Invariants:
//! - A thing stands at the first free place from its own one on, around the end, as linear probing has it; so a search ends at the
//!   first place that is free.
//! - At least a quarter of the places is free.

use crate::machine::prefetch;

/// What stands in such a table.
pub(crate) trait Numbered: Copy + 'static {
    /// Of this number there is nothing.
    const FREE: &'static Self;
    fn number(&self) -> u32;
}

#[derive(Debug)]
pub(crate) struct Open<T> {
    /// None, or a power of two.
    places: Vec<T>,
    len: usize,
}

impl<T> Default for Open<T> {
    fn default() -> Self {
        Self { places: Vec::new(), len: 0 }
    }
}

const PLACES_MIN: usize = 4;

impl<T: Numbered> Open<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All places, most of which are taken.
    pub(crate) fn places(&self) -> &[T] {
        &self.places
    }

    pub(crate) fn places_mut(&mut self) -> &mut [T] {
        &mut self.places
    }

    /// All things, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter(|thing| is_taken(*thing))
    }

    /// Announces a look at a number.
    pub(crate) fn prefetch(&self, number: u32) {
        let mask = self.places.len().wrapping_sub(1);
        self.places.get(home(number) & mask).into_iter().for_each(prefetch);
    }

    /// The thing of a number, or one that is free.
    #[inline(always)]
    pub(crate) fn of(&self, number: u32) -> &T {
        let mut place = home(number);
        let mask = self.places.len().wrapping_sub(1);
        while let Some(thing) = self.places.get(place & mask) {
            if thing.number() == number || !is_taken(thing) {
                return thing;
            }
            place += 1;
        }
        T::FREE
    }

    /// The place of a number, or that where it would stand.
    fn place_of(&self, number: u32) -> usize {
        let mask = self.places.len() - 1;
        let mut place = home(number) & mask;
        while self.places[place].number() != number && is_taken(&self.places[place]) {
            place = (place + 1) & mask;
        }
        place
    }

    /// The thing of a number, if there is one.
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        if self.places.is_empty() {
            return None;
        }
        let place = self.place_of(number);
        Some(&mut self.places[place]).filter(|thing| thing.number() == number)
    }

    /// Expects that there is none of its number.
    pub(crate) fn insert(&mut self, thing: T) {
        if (self.len + 1) * 4 > self.places.len() * 3 {
            self.resize((self.places.len() * 2).max(PLACES_MIN));
        }
        self.len += 1;
        self.put(thing);
    }

    fn put(&mut self, thing: T) {
        let place = self.place_of(thing.number());
        self.places[place] = thing;
    }

    pub(crate) fn remove(&mut self, number: u32) {
        if self.get_mut(number).is_none() {
            return;
        }
        let mask = self.places.len() - 1;
        let mut free = self.place_of(number);
        let mut next = (free + 1) & mask;
        while is_taken(&self.places[next]) {
            let thing = self.places[next];
            // What may stand no earlier than behind the free place stays.
            if next.wrapping_sub(home(thing.number())) & mask >= next.wrapping_sub(free) & mask {
                self.places[free] = thing;
                free = next;
            }
            next = (next + 1) & mask;
        }
        self.places[free] = *T::FREE;
        self.len -= 1;
        match self.len {
            0 => *self = Open::default(),
            len if len * 8 < self.places.len() && self.places.len() > PLACES_MIN => self.resize(self.places.len() / 2),
            _ => {}
        }
    }

    fn resize(&mut self, places: usize) {
        let old = std::mem::replace(&mut self.places, vec![*T::FREE; places]);
        old.into_iter().filter(is_taken).for_each(|thing| self.put(thing));
    }
}

#[inline(always)]
fn is_taken<T: Numbered>(thing: &T) -> bool {
    thing.number() != T::FREE.number()
}

/// Where a number stands if its place is free. Numbers are given one after the other, and mostly asked for together: multiplying by the golden
/// ratio spreads such numbers evenly (Knuth, "The Art of Computer Programming", volume 3, section 6.4).
#[inline(always)]
fn home(number: u32) -> usize {
    (number.wrapping_mul(0x9E37_79B9) >> 8) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Thing(u32, u32);

    impl Numbered for Thing {
        const FREE: &'static Self = &Thing(u32::MAX, 0);

        fn number(&self) -> u32 {
            self.0
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn finds_what_was_put(steps in prop::collection::vec((0..60_u32, any::<bool>()), 1..300)) {
            let mut open: Open<Thing> = Open::default();
            let mut model = BTreeMap::new();
            for (step, (number, comes)) in (0_u32..).zip(steps) {
                match (comes, open.get_mut(number)) {
                    (true, Some(thing)) => thing.1 = step,
                    (true, None) => open.insert(Thing(number, step)),
                    (false, _) => open.remove(number),
                }
                if comes { model.insert(number, step) } else { model.remove(&number) };
                prop_assert_eq!((open.len, open.all().count()), (model.len(), model.len()));
                prop_assert!(open.len * 4 <= open.places.len() * 3);
                for number in 0..60 {
                    let expected = model.get(&number).map_or(*Thing::FREE, |step| Thing(number, *step));
                    prop_assert_eq!(*open.of(number), expected);
                }
            }
        }
    }
}
