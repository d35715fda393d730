//! The grammar of table names.

use std::fmt;

use super::{StoreError, StoreErrorKind};

/// A name that can stand in SQL between quotes: a letter or an underscore, then letters, digits and
/// underscores, ASCII, 63 at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableName(String);

impl TableName {
    const MAX: usize = 63;

    pub(super) fn parse(name: &str) -> Result<Self, StoreError> {
        let mut bytes = name.bytes();
        let starts_well = bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
        if starts_well
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.len() <= Self::MAX
        {
            return Ok(Self(name.to_owned()));
        }
        Err(StoreError::new(
            StoreErrorKind::Config,
            "a table name is a letter or an underscore, then letters, digits and underscores, \
             63 characters at most",
        ))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_grammar() {
        for good in [
            "a",
            "_",
            "sessions",
            "Order",
            "select",
            "t1_2",
            &"x".repeat(63),
        ] {
            assert_eq!(TableName::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "1a",
            "a b",
            "a-b",
            "a.b",
            "a\"b",
            "a'b",
            "a`b",
            "a;drop table b",
            "a\0",
            "a\n",
            "é",
            "a\u{ff10}",
            &"x".repeat(64),
        ] {
            let error = TableName::parse(bad).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{bad:?}");
        }
    }
}
