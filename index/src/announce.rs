//! What is about to go is announced, so that what removing reads is on its way from memory for many at once: one after the other without
//! that, each would wait by itself, step by step.
//!
//! Invariant: nothing is changed, and nothing depends on it but time.

use crate::machine::prefetch;
use crate::places::Use;
use crate::{Hang, Index};

impl Index {
    /// Announces that the subscriptions at these slots are about to be removed. Some tens of them are best.
    pub fn announce_removal(&self, slots: impl Iterator<Item = u32> + Clone) {
        slots.clone().for_each(|slot| self.entries.prefetch(slot));
        let entries = slots.filter_map(|slot| self.entries.get(slot));
        for entry in entries.clone() {
            self.partitions.get(entry.partition).prefetch_all();
            match entry.hang() {
                Hang::Sure { record, .. } => self.postings.prefetch_record(record),
                Hang::Rest { rest } => self.rests.get(rest).prefetch(),
                Hang::Everyone { .. } | Hang::Never | Hang::Vacant => {}
            }
        }
        for entry in entries.clone() {
            let partition = self.partitions.get(entry.partition);
            partition.prefetch_asked();
            partition.members.get(entry.in_members as usize).into_iter().for_each(prefetch);
            partition.members.last().into_iter().for_each(prefetch);
            if let Hang::Rest { rest } = entry.hang() {
                self.records_of(entry).into_iter().for_each(|record| self.postings.prefetch_record(record));
                let rest = self.rests.get(rest);
                rest.predicate.iter().for_each(|predicate| prefetch(&**predicate));
                rest.quick.iter().for_each(|quick| partition.prefetch_use(quick.node, Use::Rest));
            }
        }
        for entry in entries {
            let partition = self.partitions.get(entry.partition);
            // The last member takes the place of the one that goes.
            partition.members.last().into_iter().for_each(|slot| self.entries.prefetch(*slot));
            for record in self.records_of(entry) {
                self.postings.prefetch_change(self.postings.tag(record));
                let known = self.postings.record(record);
                self.postings.prefetch_items(known.sure);
                self.postings.prefetch_items(known.rest);
                partition.prefetch_use(known.node_class >> 8, Use::Equal);
            }
        }
    }
}
