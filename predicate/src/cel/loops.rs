//! `exists`, `all` and `exists_one` over a field, when what they ask of an item is native too.
//!
//! Invariant: as for all that is native, the answer is the interpreter's. `exists` is `||` over the items and `all` is `&&`, so that an item that
//! decides absorbs the errors of others; `exists_one` is an error where any item is. A map is walked by its names, as texts; what is neither
//! list nor map is an error.

use super::interpret::Interpreted;
use super::native::{Fault, Node, Operand, Scope};
use super::value::CelRef;
use crate::Budget;
use crate::lookup::{items, names};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopKind {
    All,
    Exists,
    ExistsOne,
}

#[derive(Debug)]
pub(super) struct Loop {
    pub(super) kind: LoopKind,
    pub(super) range: Operand,
    /// Loops around this one.
    pub(super) depth: u8,
    pub(super) body: Node,
    /// For what only an interpreter can tell. None within another loop, and where there can be nothing of that kind.
    pub(super) fallback: Option<Interpreted>,
}

impl Loop {
    pub(super) fn evaluate(&self, scope: &Scope<'_, '_>, budget: &mut Budget) -> Result<bool, Fault> {
        budget.spend(1);
        match self.range.value(scope, budget)? {
            CelRef::List(list) => self.over(items(list).map(CelRef::of), scope, budget),
            // A name that stands there twice is one name of the map, but would be counted twice.
            CelRef::Map(_) if self.kind == LoopKind::ExistsOne => Err(Fault::Composite),
            CelRef::Map(map) => self.over(names(map).map(CelRef::Text), scope, budget),
            _ => Err(Fault::Error),
        }
    }

    fn over<'a>(
        &self,
        items: impl Iterator<Item = CelRef<'a>>,
        scope: &Scope<'_, 'a>,
        budget: &mut Budget,
    ) -> Result<bool, Fault> {
        let deciding = match self.kind {
            LoopKind::All => Some(false),
            LoopKind::Exists => Some(true),
            LoopKind::ExistsOne => None,
        };
        let (mut failed, mut held) = (false, 0_u64);
        let mut scope = *scope;
        for item in items {
            budget.spend(1);
            if budget.is_spent() {
                return Err(Fault::Error);
            }
            scope.items[usize::from(self.depth)] = item;
            match self.body.evaluate(&scope, budget) {
                Ok(answer) if deciding == Some(answer) => return Ok(answer),
                Ok(answer) => held += u64::from(answer),
                Err(Fault::Error) if deciding.is_some() => failed = true,
                Err(fault) => return Err(fault),
            }
        }
        match deciding {
            Some(_) if failed => Err(Fault::Error),
            Some(deciding) => Ok(!deciding),
            None => Ok(held == 1),
        }
    }
}
