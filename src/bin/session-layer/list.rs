//! `list`: the sessions, a line each.

use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use session_layer::SessionInfo;
use session_layer::store::SessionKey;

use crate::args::List;
use crate::failure::{Failure, Outcome};
use crate::output::{Bytes, date, span};
use crate::stop::Stop;
use crate::stores;
use crate::walk::{AT_ONCE, Found, Walked, load, walk};

/// One session.
#[derive(Serialize)]
struct Row {
    key: String,
    state: State,
    created: Option<String>,
    permanent: Option<bool>,
    bytes: Option<usize>,
    /// In seconds.
    expires_in: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Live,
    Ended,
    Unreadable,
    /// The list of a user's sessions.
    Index,
}

pub(crate) async fn run(args: List, stop: Stop) -> Result<Outcome, Failure> {
    let opened = stores::open_existing(args.store.as_deref()).await?;
    let mut out = BufWriter::new(std::io::stdout());
    if !args.json {
        writeln!(
            out,
            "{:43}  {:10}  {:20}  {:9}  {:>10}  expires in",
            "key", "state", "created", "permanent", "size"
        )?;
    }
    let mut left = args.limit.map_or(usize::MAX, NonZeroUsize::get);
    let store = opened.store.clone();
    let walked = walk(
        &opened.store,
        AT_ONCE,
        &stop,
        |key| {
            let store = store.clone();
            async move {
                let found = load(&store, &key).await.map_err(|error| {
                    Failure::of_store(format_args!("cannot read session {key}"), error)
                })?;
                Ok(row(&key, found))
            }
        },
        |row| {
            let Some(row) = row.filter(|_| left > 0) else {
                return Ok(ControlFlow::Continue(()));
            };
            row.write(&mut out, args.json)?;
            left -= 1;
            Ok(if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        },
    )
    .await;
    // What was found is shown, whatever came after.
    out.flush()?;
    Ok(match walked? {
        Walked::Everything | Walked::Enough => Outcome::Done,
        Walked::Interrupted => Outcome::Interrupted,
    })
}

fn row(key: &SessionKey, found: Found) -> Option<Row> {
    let record = match found {
        Found::Absent => return None,
        Found::Unreadable => None,
        Found::Record(record) => Some(record),
    };
    let info = record.as_ref().and_then(SessionInfo::of);
    Some(Row {
        key: key.to_string(),
        state: match info {
            None => State::Unreadable,
            Some(info) if info.is_ended() => State::Ended,
            Some(info) if info.is_user_index() => State::Index,
            Some(_) => State::Live,
        },
        created: info.and_then(|info| info.created_at()).and_then(date),
        permanent: info.and_then(|info| info.permanent()),
        bytes: record.as_ref().map(|record| record.payload().len()),
        expires_in: record.map(|record| record.ttl().as_secs()),
    })
}

impl Row {
    fn write(&self, out: &mut impl Write, json: bool) -> Result<(), Failure> {
        if json {
            serde_json::to_writer(&mut *out, self).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        let none = || "-".to_owned();
        let permanent = self
            .permanent
            .map_or("-", |yes| if yes { "yes" } else { "no" });
        let size = self.bytes.map(|bytes| Bytes(bytes as u64).to_string());
        let left = self.expires_in.map(Duration::from_secs).map(span);
        let state = match self.state {
            State::Live => "live",
            State::Ended => "ended",
            State::Unreadable => "unreadable",
            State::Index => "index",
        };
        writeln!(
            out,
            "{}  {state:10}  {:20}  {permanent:9}  {:>10}  {}",
            self.key,
            self.created.clone().unwrap_or_else(none),
            size.unwrap_or_else(none),
            left.unwrap_or_else(none),
        )?;
        Ok(())
    }
}
