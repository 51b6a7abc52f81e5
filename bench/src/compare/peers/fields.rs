//! The fields of a generated document, for the peers: a walk over its bytes that knows the types that occur and no others, so
//! that no peer is charged for a reader that does more than it needs.

/// A value, as it stands in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Text(&'a str),
    Number(i64),
}

/// Names and values in their order. Ends at whatever isn't a text or an integer.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(document: &'a [u8]) -> Self {
        Self(document.get(4..).unwrap_or(&[]))
    }

    fn step(&mut self) -> Option<(&'a str, Scalar<'a>)> {
        let (kind, rest) = self.0.split_first()?;
        let zero = rest.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(&rest[..zero]).ok()?;
        let rest = &rest[zero + 1..];
        let (value, rest) = match kind {
            0x02 => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (text, rest) = rest.split_at_checked(usize::try_from(i32::from_le_bytes(*length)).ok()?)?;
                let (_, text) = text.split_last()?;
                (Scalar::Text(std::str::from_utf8(text).ok()?), rest)
            }
            0x10 => {
                let (number, rest) = rest.split_first_chunk::<4>()?;
                (Scalar::Number(i64::from(i32::from_le_bytes(*number))), rest)
            }
            0x12 => {
                let (number, rest) = rest.split_first_chunk::<8>()?;
                (Scalar::Number(i64::from_le_bytes(*number)), rest)
            }
            _ => return None,
        };
        self.0 = rest;
        Some((name, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a str, Scalar<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.step()
    }
}

#[cfg(test)]
mod tests {
    use workload::matching::{FIELDS, Workload, World};

    use super::*;

    #[test]
    fn all_fields_of_a_generated_document() {
        let pool = World::new(Workload::Range, 1_000, 1).events(10);
        for event in 0..10 {
            let document = pool.event(event).after;
            let fields: Vec<(&str, Scalar<'_>)> = Fields::of(document).collect();
            assert!(fields.iter().map(|(name, _)| *name).eq(FIELDS));
            let decoded = bson::Document::from_reader(document).unwrap();
            for (name, value) in fields {
                match value {
                    Scalar::Text(text) => assert_eq!(decoded.get_str(name).unwrap(), text),
                    Scalar::Number(number) => {
                        let stored = decoded.get(name).unwrap();
                        assert_eq!(stored.as_i64().or(stored.as_i32().map(i64::from)), Some(number));
                    }
                }
            }
        }
    }
}
