//! Items of a ring in a few words, for traces.

use shards::{CatchUp, FromIngest};
use wire::Position;

use crate::history::BACKEND;

pub(crate) fn shown(item: &FromIngest) -> String {
    match item {
        FromIngest::Change(change) => format!("change {:?}", change.position.order()),
        FromIngest::Gap(gap) => format!("gap {:?}", gap.position.order()),
        FromIngest::Progress(position) => format!("progress {:?}", position.order()),
        FromIngest::FilterSeen { version, positions } => {
            format!("filter {version} from {:?}", positions.get(*BACKEND).map(Position::order))
        }
        FromIngest::CatchUp(item) => match item {
            CatchUp::Began { pass, from } => format!("pass {pass} from {:?}", from.order()),
            CatchUp::Change { change, .. } => format!("of a pass {:?}", change.position.order()),
            CatchUp::Gap { gap, .. } => format!("of a pass gap {:?}", gap.position.order()),
            CatchUp::Progress { position, .. } => format!("of a pass progress {:?}", position.order()),
            CatchUp::CaughtUp { pass, position } => format!("pass {pass} caught up at {:?}", position.order()),
            CatchUp::Failed { pass, failure, .. } => format!("pass {pass} failed: {failure:?}"),
        },
    }
}
