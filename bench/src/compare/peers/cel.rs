//! A loop of the `cel` crate's interpreter over the collection's expressions: programs compiled once, one context for all, in which an
//! event puts its document as a map, decoded once.

use std::{collections::HashMap, ops::Range, sync::Arc};

use cel_interpreter::{
    Context, Env, Program, Value,
    objects::{Key, Map},
};
use workload::matching::{Answer, FIELDS, Pool, World};

use super::fields::{Fields, Scalar};
use crate::compare::{Built, Engine, EngineKind, build_timed};

pub(in crate::compare) struct Cel<'a> {
    pool: &'a Pool,
    collections: Vec<Vec<(u32, Program)>>,
    /// Names of fields as keys of a map, made once.
    keys: HashMap<&'static str, Arc<String>>,
    before: Context<'static, 'static>,
    after: Context<'static, 'static>,
}

impl<'a> Cel<'a> {
    pub(in crate::compare) fn build(world: &World, pool: &'a Pool) -> Built<'a> {
        let env = Arc::new(Env::stdlib());
        let mut cel = Self {
            pool,
            collections: (0..world.places()).map(|_| Vec::new()).collect(),
            keys: FIELDS.iter().map(|name| (*name, Arc::new((*name).to_owned()))).collect(),
            before: Context::with_env(env.clone()),
            after: Context::with_env(env),
        };
        let text = |world: &World, subscription| world.shape(subscription).to_cel();
        let (build, bytes) = build_timed(world, text, |subscription, text: String| {
            let program = Program::compile(&text).expect("generated subscriptions compile");
            cel.collections[world.collection_of(subscription)].push((subscription as u32, program));
        });
        Built { engine: Box::new(cel), build, bytes }
    }

    fn matches(&mut self, event: usize, mut each: impl FnMut(Answer)) {
        let event = self.pool.event(event);
        let document = |bytes: &[u8]| {
            let field = |(name, value): (&str, Scalar<'_>)| {
                let value = match value {
                    Scalar::Text(text) => Value::String(Arc::new(text.to_owned())),
                    Scalar::Number(number) => Value::Int(number),
                };
                (Key::String(self.keys[name].clone()), value)
            };
            Value::Map(Map { map: Arc::new(Fields::of(bytes).map(field).collect()) })
        };
        let has_before =
            event.before.map(document).map(|doc| self.before.add_variable_from_value("doc", doc)).is_some();
        self.after.add_variable_from_value("doc", document(event.after));
        for (subscription, program) in &self.collections[event.collection] {
            let holds = |context: &Context<'_, '_>| matches!(program.execute(context), Ok(Value::Bool(true)));
            let (before, after) = (has_before && holds(&self.before), holds(&self.after));
            if before || after {
                each(Answer { subscription: *subscription, before, after });
            }
        }
    }
}

impl Engine for Cel<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::Cel
    }

    fn round(&mut self, events: Range<usize>) -> u64 {
        let mut matches = 0;
        events.for_each(|event| self.matches(event, |_| matches += 1));
        matches
    }

    fn answer(&mut self, event: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.matches(event, |answer| answers.push(answer));
        answers
    }
}
