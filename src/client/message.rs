//! What comes back: heads and whole answers. Owns plain values only.

use super::report::Report;

/// Header fields in the order they came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fields(Vec<(String, Vec<u8>)>);

impl Fields {
    pub(super) fn push(&mut self, name: String, value: Vec<u8>) {
        self.0.push((name, value));
    }

    /// The value of the first field of that name, in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Every field: name in lower case, and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The head of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// HTTP status. A tunnel answers 200 when it is through.
    pub status: u16,
    /// Header fields.
    pub fields: Fields,
}

/// A whole answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Response {
    /// HTTP status. A tunnel answers 200 when it is through.
    pub status: u16,
    /// Header fields.
    pub fields: Fields,
    /// The body.
    pub body: Vec<u8>,
    /// What it took.
    pub report: Report,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_any_case_first_first() {
        let mut fields = Fields::default();
        assert!(fields.is_empty());
        fields.push("x-a".into(), b"1".to_vec());
        fields.push("x-a".into(), b"2".to_vec());
        assert_eq!(fields.get("X-A"), Some(&b"1"[..]));
        assert_eq!(fields.get("x-b"), None);
        assert_eq!(fields.iter().count(), fields.len());
    }
}
