//! What PostgreSQL's error codes mean.

use crate::store::StoreErrorKind::{Config, Corrupt, Other, Timeout, TooLarge, Unavailable};
use crate::store::sql::Then::{GoOn, HangUp, TryAgain};
use crate::store::sql::{NO_TABLE, OTHER_FORM, Verdict};

pub(super) fn judge(code: &str) -> Verdict {
    let (kind, then, message) = match code {
        "40001" | "40P01" => (
            Unavailable,
            TryAgain,
            "the server undid the statement for the sake of others, several times",
        ),
        "42P01" => (Config, GoOn, NO_TABLE),
        "42501" => (Config, GoOn, "the database user may not do this"),
        "3D000" | "57P04" => (Config, HangUp, "there is no such database"),
        "3F000" => (Config, GoOn, "there is no such schema"),
        // Another server, or another session of it, has prepared the statement.
        "26000" | "42P05" | "08P01" => (
            Config,
            HangUp,
            "something between the store and the server does not keep sessions apart",
        ),
        // Its table was altered after the statement was prepared.
        "0A000" => (Unavailable, HangUp, "the table was altered a moment ago"),
        "25006" => (
            Unavailable,
            HangUp,
            "the server only reads: it is a standby, perhaps, or set to",
        ),
        "53100" => (Unavailable, GoOn, "the server's disk is full"),
        "53300" => (Unavailable, HangUp, "the server has too many connections"),
        "55P03" | "57014" => (Timeout, GoOn, "the server cancelled the statement"),
        "57P03" => (Unavailable, HangUp, "the server is starting or stopping"),
        "22008" => (Corrupt, GoOn, "the row's expiry is out of range"),
        "XX001" | "XX002" => (Other, GoOn, "the database is damaged"),
        code => match code.get(..2).unwrap_or_default() {
            "08" => (Unavailable, HangUp, "the connection was lost"),
            "28" => (
                Config,
                HangUp,
                "the server refuses the user or the password",
            ),
            "42" => (Config, GoOn, OTHER_FORM),
            "25" => (Other, HangUp, "the connection is in a transaction"),
            "53" | "58" => (Unavailable, GoOn, "the server lacks something it needs"),
            "54" => (
                TooLarge,
                GoOn,
                "the server does not take a row of this size",
            ),
            "57" => (Unavailable, HangUp, "the server ended the connection"),
            _ => (Other, GoOn, "the server failed"),
        },
    };
    Verdict::new(kind, then, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_what_to_do() {
        for (code, kind, then) in [
            ("28P01", Config, HangUp),
            ("28000", Config, HangUp),
            ("3D000", Config, HangUp),
            ("42501", Config, GoOn),
            ("42P01", Config, GoOn),
            ("42703", Config, GoOn),
            ("42P10", Config, GoOn),
            ("53100", Unavailable, GoOn),
            ("53200", Unavailable, GoOn),
            ("53300", Unavailable, HangUp),
            ("57P01", Unavailable, HangUp),
            ("57P03", Unavailable, HangUp),
            ("57014", Timeout, GoOn),
            ("25006", Unavailable, HangUp),
            ("40001", Unavailable, TryAgain),
            ("40P01", Unavailable, TryAgain),
            ("08006", Unavailable, HangUp),
            ("23505", Other, GoOn),
            ("é", Other, GoOn),
            ("", Other, GoOn),
        ] {
            let verdict = judge(code);
            assert_eq!((verdict.kind, verdict.then), (kind, then), "{code}");
        }
    }
}
