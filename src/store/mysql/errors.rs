//! What the error numbers of MySQL and MariaDB mean.

use crate::store::StoreErrorKind::{Config, Other, Timeout, TooLarge, Unavailable};
use crate::store::sql::Then::{GoOn, HangUp, TryAgain};
use crate::store::sql::{NO_TABLE, OTHER_FORM, Verdict};

pub(super) fn judge(number: u16) -> Verdict {
    let (kind, then, message) = match number {
        // A deadlock, or (MariaDB) a row that changed since a snapshot: the transaction, which is this
        // statement, was rolled back.
        1213 | 1020 => (
            Unavailable,
            TryAgain,
            "the server undid the statement for the sake of others, several times",
        ),
        1146 => (Config, GoOn, NO_TABLE),
        1054 | 1136 | 1292 | 1364 | 1366 | 1406 => (Config, GoOn, OTHER_FORM),
        1044 | 1142 | 1143 | 1227 | 1370 => (Config, GoOn, "the database user may not do this"),
        1045 | 1251 | 1275 | 1698 | 1820 | 1862 | 2059 | 3118 | 4151 => (
            Config,
            HangUp,
            "the server refuses the user or the password",
        ),
        1046 => (Config, GoOn, "the URL names no database"),
        1049 => (Config, HangUp, "there is no such database"),
        1021 | 1030 | 1037 | 1038 | 1041 | 1114 | 1135 | 1461 | 3675 => (
            Unavailable,
            GoOn,
            "the server lacks disk, memory, or something else it needs",
        ),
        1040 | 1203 | 1226 => (Unavailable, HangUp, "the server has too many connections"),
        1205 | 1317 | 1969 | 3024 | 4166 => (Timeout, GoOn, "the server cancelled the statement"),
        1290 | 1792 | 1836 | 3100 => (
            Unavailable,
            HangUp,
            "the server only reads: it is a replica, perhaps, or set to",
        ),
        1047
        | 1053
        | 1077
        | 1079
        | 1152
        | 1158..=1161
        | 1184
        | 1243
        | 1615
        | 1927
        | 3032
        | 3169
        | 4031 => (Unavailable, HangUp, "the server ended the connection"),
        1153 => (
            TooLarge,
            HangUp,
            "the server's `max_allowed_packet` is smaller than this",
        ),
        1118 | 1301 => (
            TooLarge,
            GoOn,
            "the server does not take a row of this size",
        ),
        1034 | 1035 | 1194 | 1195 | 1712 => (Other, GoOn, "the table is damaged"),
        _ => (Other, GoOn, "the server failed"),
    };
    Verdict::new(kind, then, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_what_to_do() {
        for (number, kind, then) in [
            (1045, Config, HangUp),
            (1049, Config, HangUp),
            (1046, Config, GoOn),
            (1142, Config, GoOn),
            (1146, Config, GoOn),
            (1406, Config, GoOn),
            (1021, Unavailable, GoOn),
            (1114, Unavailable, GoOn),
            (1040, Unavailable, HangUp),
            (1053, Unavailable, HangUp),
            (1159, Unavailable, HangUp),
            (1290, Unavailable, HangUp),
            (4031, Unavailable, HangUp),
            (1205, Timeout, GoOn),
            (1213, Unavailable, TryAgain),
            (1153, TooLarge, HangUp),
            (1062, Other, GoOn),
            (0, Other, GoOn),
        ] {
            let verdict = judge(number);
            assert_eq!((verdict.kind, verdict.then), (kind, then), "{number}");
        }
    }
}
