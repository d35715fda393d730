//! What became of the sessions, in numbers.

use std::io::{self, Write};

use session_layer::store::SessionKey;

use super::record::Copied;
use crate::failure::Outcome;
use crate::output::Count;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) new: u64,
    pub(super) there: u64,
    pub(super) replaced: u64,
    pub(super) ended_there: u64,
    pub(super) expired: u64,
    pub(super) differs: u64,
    pub(super) unreadable: u64,
    pub(super) too_large: u64,
    /// Sessions that only the target had.
    pub(super) others_ended: u64,
}

impl Report {
    /// Counts a session. The line, if there is one, names what was left behind.
    pub(super) fn count(&mut self, name: &SessionKey, copied: Copied) -> Option<String> {
        match copied {
            Copied::New => self.new += 1,
            Copied::There => self.there += 1,
            Copied::Replaced => self.replaced += 1,
            Copied::EndedThere => self.ended_there += 1,
            Copied::ExpiredMeanwhile => self.expired += 1,
            Copied::Differs => {
                self.differs += 1;
                return Some(format!("differs in the target: {name}"));
            }
            Copied::Unreadable => {
                self.unreadable += 1;
                return Some(format!("unreadable: {name}"));
            }
            Copied::TooLarge { size, limit } => {
                self.too_large += 1;
                return Some(format!(
                    "too large for the target, {size} bytes of at most {limit}: {name}"
                ));
            }
        }
        None
    }

    pub(super) fn ended_in_target(&mut self) {
        self.others_ended += 1;
    }

    pub(super) fn outcome(&self) -> Outcome {
        if self.differs + self.unreadable + self.too_large > 0 {
            Outcome::LeftBehind
        } else {
            Outcome::Done
        }
    }

    /// The first three lines always, the others where there is something to tell.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let rows = [
            ("copied", self.new, true),
            ("already there", self.there, true),
            ("expired meanwhile", self.expired, true),
            ("replaced in the target", self.replaced, false),
            ("ended in the target before", self.ended_there, false),
            (
                "ended, since only the target had them",
                self.others_ended,
                false,
            ),
            ("left behind: differ in the target", self.differs, false),
            ("left behind: unreadable", self.unreadable, false),
            (
                "left behind: too large for the target",
                self.too_large,
                false,
            ),
        ];
        for (what, count, always) in rows {
            if always || count > 0 {
                writeln!(out, "{what:38} {:>10}", Count(count).to_string())?;
            }
        }
        Ok(())
    }
}
