//! Names of fields, as a tree that all partitions share: a document's names are looked up here once, whatever is indexed of them.
//!
//! Invariants:
//! - A node lives while something is kept at it or below it; its number is used again afterwards.
//! - `next` and `child` are guesses of the name that comes next in a document, taken from the last one. They change speed alone.

use predicate::Path;

use crate::key::Seeds;
use crate::table::Table;

/// The root of every document.
pub(crate) const ROOT: u32 = 0;
/// The document id of a nested layout, which is computed.
pub(crate) const ID: u32 = 1;
/// No name is ever found under this.
pub(crate) const NO_NODE: u32 = u32::MAX;
/// A node and a class share 32 bits.
const NODES_MAX: usize = 1 << 24;

#[derive(Debug)]
pub(crate) struct Paths {
    hot: Vec<Hot>,
    cold: Vec<Cold>,
    vacant: Vec<u32>,
    table: Table,
    seeds: Seeds,
    /// Number of the walk that is under way.
    stamp: u32,
    /// A bit for each remainder of the names: most names of a document are none that anybody asks for. Bits of nodes that are gone
    /// stay until few are left, and cost a look-up.
    marks: [u64; MARKS],
}

const MARKS: usize = 16;

/// The word and the bit of a name's mark.
#[inline]
fn mark_of(parent: u32, word: u64) -> (usize, u64) {
    // Multiplicative hashing: the upper bits depend on all below.
    let hash = (word ^ u64::from(parent)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
    (hash as usize % MARKS, 1 << (hash / MARKS as u64 % 64))
}

/// A path, and perhaps one name more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot<'p> {
    pub(crate) path: &'p Path,
    pub(crate) below: Option<&'p str>,
}

/// What a walk looks at.
#[derive(Clone, Debug)]
pub(crate) struct Hot {
    /// The first bytes of the name, zeros after its end.
    word: u64,
    /// The bytes of the word that a name and the NUL after it must have.
    mask: u64,
    /// The last eight bytes of a name and its NUL, where it is not shorter.
    tail: u64,
    pub(crate) parent: u32,
    /// Bytes of the name.
    pub(crate) length: u32,
    pub(crate) next: u32,
    pub(crate) child: u32,
    /// The last walk that has seen it: of two fields of one name the first counts.
    pub(crate) stamp: u32,
}

/// Names of fewer bytes are in the word with their NUL; and in word and tail.
pub(crate) const IN_WORD: u32 = 8;
pub(crate) const IN_TAIL: u32 = 16;

impl Hot {
    fn new(name: &str, parent: u32) -> Self {
        let mask = if name.len() < 7 { !(u64::MAX << (8 * (name.len() + 1))) } else { u64::MAX };
        let tail = name.as_bytes().last_chunk::<7>().map_or(0, |last| {
            let mut tail = [0; 8];
            tail[..7].copy_from_slice(last);
            u64::from_le_bytes(tail)
        });
        // A name is shorter than its document, which is shorter than 2 GiB.
        let length = name.len() as u32;
        Self { word: word_of(name), mask, tail, parent, length, next: NO_NODE, child: NO_NODE, stamp: 0 }
    }

    /// Whether a name below this parent, of which these are the first eight bytes, whatever comes after it, begins as this one does: for
    /// certain if that is shorter than [`IN_WORD`].
    #[inline]
    pub(crate) fn begins(&self, parent: u32, word: u64) -> bool {
        (word ^ self.word) & self.mask == 0 && self.parent == parent
    }

    /// Whether a name that begins as this one, which is shorter than [`IN_TAIL`], is this one.
    #[inline]
    pub(crate) fn ends(&self, named: &[u8]) -> bool {
        let tail = named.get(self.length as usize - 7..).and_then(<[u8]>::first_chunk);
        tail.is_some_and(|tail| u64::from_le_bytes(*tail) == self.tail)
    }

    /// Whether it may be the node of this name: for certain if the name is no longer than the word.
    #[inline]
    fn is(&self, parent: u32, word: u64, length: usize) -> bool {
        self.word == word && self.parent == parent && self.length as usize == length
    }
}

#[derive(Debug)]
struct Cold {
    name: Box<str>,
    /// Uses of the node itself, and nodes below it.
    holders: u32,
}

impl Paths {
    pub(crate) fn new(seeds: Seeds) -> Self {
        let node = || Hot::new("", NO_NODE);
        let cold = || Cold { name: "".into(), holders: 1 };
        Self {
            hot: vec![node(), node()],
            cold: vec![cold(), cold()],
            vacant: Vec::new(),
            table: Table::default(),
            seeds,
            stamp: 0,
            marks: [0; MARKS],
        }
    }

    /// Whether there may be a node of a name that begins with this below that parent.
    #[inline]
    pub(crate) fn may_have(&self, parent: u32, word: u64) -> bool {
        let (at, bit) = mark_of(parent, word);
        self.marks[at] & bit != 0
    }

    /// Numbers the next walk.
    #[inline]
    pub(crate) fn begin(&mut self) -> u32 {
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 {
            // After four billion walks an old mark would look like a new one.
            self.hot.iter_mut().for_each(|node| node.stamp = 0);
            self.stamp = 1;
        }
        self.stamp
    }

    /// All nodes, by their numbers.
    #[inline]
    pub(crate) fn hot(&mut self) -> &mut [Hot] {
        &mut self.hot
    }

    /// Whether the node is the one of this name below that parent. The first bytes of the name are given.
    #[inline]
    pub(crate) fn is(&self, node: u32, parent: u32, word: u64, name: &[u8]) -> bool {
        self.hot[node as usize].is(parent, word, name.len())
            && (name.len() <= 8 || *self.cold[node as usize].name.as_bytes() == *name)
    }

    /// The node of a name below another.
    #[inline]
    pub(crate) fn child(&self, parent: u32, word: u64, name: &[u8]) -> Option<u32> {
        self.table.find(self.tag(parent, word, name), |node| self.is(node, parent, word, name))
    }

    /// The node of a path, kept until it is released. None where there are too many, and for paths that lead nowhere.
    pub(crate) fn acquire(&mut self, Spot { path, below }: Spot<'_>, id_path: Option<&Path>) -> Option<u32> {
        let Some(names) = path.fields() else {
            if id_path != Some(path) || below.is_some() {
                return None;
            }
            self.cold[ID as usize].holders += 1;
            return Some(ID);
        };
        let mut node = ROOT;
        for name in names.iter().map(|name| &**name).chain(below) {
            node = match self.child(node, word_of(name), name.as_bytes()) {
                Some(child) => child,
                None => match self.add(node, name) {
                    Some(child) => child,
                    None => {
                        self.prune(node);
                        return None;
                    }
                },
            };
        }
        self.cold[node as usize].holders += 1;
        Some(node)
    }

    /// The node of a path, if it has one. An error for paths that lead nowhere.
    pub(crate) fn find(&self, Spot { path, below }: Spot<'_>, id_path: Option<&Path>) -> Result<Option<u32>, ()> {
        let Some(names) = path.fields() else {
            return if id_path == Some(path) && below.is_none() { Ok(Some(ID)) } else { Err(()) };
        };
        Ok(names
            .iter()
            .map(|name| &**name)
            .chain(below)
            .try_fold(ROOT, |node, name| self.child(node, word_of(name), name.as_bytes())))
    }

    pub(crate) fn release(&mut self, node: u32) {
        self.cold[node as usize].holders -= 1;
        self.prune(node);
    }

    /// The nodes from this one up to below the root.
    pub(crate) fn up(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(Some(node), |node| {
            let parent = self.hot[*node as usize].parent;
            (parent != ROOT && parent != NO_NODE).then_some(parent)
        })
    }

    /// The names from the root down to a node.
    pub(crate) fn names(&self, node: u32) -> Vec<&str> {
        let mut names: Vec<&str> = self.up(node).map(|node| &*self.cold[node as usize].name).collect();
        names.reverse();
        names
    }

    pub(crate) fn len(&self) -> usize {
        self.hot.len() - 2 - self.vacant.len()
    }

    fn tag(&self, parent: u32, word: u64, name: &[u8]) -> u32 {
        let rest = match name.len() {
            0..=8 => 0,
            9..=16 => name[name.len() - 8..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk)),
            _ => self.seeds.hash_long(name),
        };
        (self.seeds.hash(word, rest, [parent, name.len() as u32]) >> 32) as u32
    }

    fn add(&mut self, parent: u32, name: &str) -> Option<u32> {
        let word = word_of(name);
        let hot = Hot::new(name, parent);
        let cold = Cold { name: name.into(), holders: 0 };
        let node = match self.vacant.pop() {
            Some(node) => {
                self.hot[node as usize] = hot;
                self.cold[node as usize] = cold;
                node
            }
            None if self.hot.len() < NODES_MAX => {
                self.hot.push(hot);
                self.cold.push(cold);
                self.hot.len() as u32 - 1
            }
            None => return None,
        };
        self.table.insert(self.tag(parent, word, name.as_bytes()), node);
        let (at, bit) = mark_of(parent, word);
        self.marks[at] |= bit;
        self.cold[parent as usize].holders += 1;
        Some(node)
    }

    /// Takes nodes away that nothing holds, from this one upwards.
    fn prune(&mut self, mut node: u32) {
        while self.cold[node as usize].holders == 0 {
            let parent = self.hot[node as usize].parent;
            let name = std::mem::take(&mut self.cold[node as usize].name);
            self.table.remove(self.tag(parent, word_of(&name), name.as_bytes()), node);
            // A guess may still lead here: it is nobody's child.
            self.hot[node as usize].parent = NO_NODE;
            self.vacant.push(node);
            self.cold[parent as usize].holders -= 1;
            node = parent;
            if self.len() == 0 {
                self.marks = [0; MARKS];
            }
        }
    }
}

/// The first eight bytes of a name.
pub(crate) fn word_of(name: &str) -> u64 {
    let mut word = [0; 8];
    let length = name.len().min(8);
    word[..length].copy_from_slice(&name.as_bytes()[..length]);
    u64::from_le_bytes(word)
}
