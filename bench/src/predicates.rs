//! One evaluation on raw BSON: filters, and expressions in the native form and by the interpreter.

use bson::RawDocumentBuf;
use predicate::{Budget, ChangeType, Context, EVALUATION_UNITS_MAX, Mapping, Outcome, Predicate, Source};
use workload::{Generator, Preset, Profile, WriteKind, events::stored_form};

use crate::{Named, Scenario};

const DOCUMENTS: usize = 256;

/// Name and JSON.
const FILTERS: [(&str, &str); 6] = [
    ("==", r#"[{"field":"status","op":"==","value":"open"}]"#),
    ("== nested", r#"[{"field":"owner.address.city","op":"==","value":"Oslo"}]"#),
    (">", r#"[{"field":"price","op":">","value":5}]"#),
    ("in", r#"[{"field":"status","op":"in","value":["open","new","held"]}]"#),
    ("contains", r#"[{"field":"tags","op":"contains","value":"red"}]"#),
    (
        "three",
        r#"[{"field":"status","op":"!=","value":"done"},{"field":"qty","op":"<","value":15},{"field":"title","op":"starts-with","value":"alpha-"}]"#,
    ),
];

/// Name and CEL.
const EXPRESSIONS: [(&str, &str); 6] = [
    ("==", "doc.status == 'open'"),
    ("nested ==", "doc.owner.address.city == 'Oslo'"),
    (">", "doc.qty > 5.0"),
    ("and, or", "doc.status != 'done' && (doc.qty < 15.0 || doc.title.startsWith('alpha-'))"),
    ("regex", "doc.title.matches('^alpha-[0-9]+$')"),
    ("macro", "doc.tags.exists(tag, tag == 'red')"),
];

pub fn scenarios() -> Vec<Named> {
    let filters = FILTERS.into_iter().map(|(name, filters)| {
        Named::new(format!("filter {name}"), move || Evaluating::new(Source { filters, expr: "" }, true))
    });
    let expressions = EXPRESSIONS.into_iter().flat_map(|(name, expr)| {
        [(true, "native"), (false, "interpreted")].map(|(native, form)| {
            Named::new(format!("cel {form} {name}"), move || Evaluating::new(Source { filters: "", expr }, native))
        })
    });
    filters.chain(expressions).collect()
}

struct Evaluating {
    predicate: Predicate,
    documents: Vec<RawDocumentBuf>,
    outcomes: [usize; 3],
}

impl Evaluating {
    fn new(source: Source<'_>, native: bool) -> Self {
        let mapping = Mapping::syntrix();
        let compile = if native { Predicate::compile } else { Predicate::compile_interpreted };
        let predicate = compile(source, &mapping).expect("the sources are constants that compile");
        let mut writer = Generator::new(Profile::test(1)).writer();
        let mut documents = Vec::with_capacity(DOCUMENTS);
        while documents.len() < DOCUMENTS {
            let write = writer.next();
            if write.kind != WriteKind::HardDelete {
                let stored = stored_form(&write, None, 1_700_000_000_000);
                documents.push(RawDocumentBuf::try_from(&stored).expect("generated documents are BSON"));
            }
        }
        debug_assert_eq!(Profile::test(1).preset, Preset::Syntrix, "the mapping is that of the documents");
        Self { predicate, documents, outcomes: [0; 3] }
    }
}

impl Scenario for Evaluating {
    fn prepare(&mut self) {
        self.outcomes = [0; 3];
    }

    fn round(&mut self) {
        let context = Context { tenant: "acme", collection: "orders-0", change_type: ChangeType::Insert, before: None };
        for document in &self.documents {
            let outcome = self.predicate.evaluate(document, &context, &mut Budget { units: EVALUATION_UNITS_MAX });
            self.outcomes[match outcome {
                Outcome::True => 0,
                Outcome::False => 1,
                Outcome::Error | Outcome::OverBudget => 2,
            }] += 1;
        }
    }

    fn units(&self) -> u64 {
        self.documents.len() as u64
    }

    fn describe(&self) -> String {
        let bytes: usize = self.documents.iter().map(|document| document.as_bytes().len()).sum();
        let [holds, fails, errors] = self.outcomes;
        let count = self.documents.len();
        format!("{count} documents of {} bytes; true {holds}, false {fails}, errors {errors}", bytes / count)
    }
}
