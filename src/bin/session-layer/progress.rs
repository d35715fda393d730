//! How far a long command is: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(10);

/// Written to standard error, so that the output stays what was asked for.
pub(crate) struct Progress {
    doing: &'static str,
    bar: Option<ProgressBar>,
    so_far: Mutex<SoFar>,
}

struct SoFar {
    done: u64,
    said: Instant,
}

impl Progress {
    pub(crate) fn new(doing: &'static str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(doing);
            let style = "{spinner} {msg} {human_pos} ({per_sec}, {elapsed})";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        Self {
            doing,
            bar,
            so_far: Mutex::new(SoFar {
                done: 0,
                said: Instant::now(),
            }),
        }
    }

    /// Whether somebody is watching, so that counting beforehand is worth it.
    pub(crate) fn is_watched(&self) -> bool {
        self.bar.is_some()
    }

    /// From here on it is known how many there are.
    pub(crate) fn expect(&self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            let style = "{msg} [{bar:30}] {human_pos} of {human_len} ({per_sec}, {eta} left)";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
        }
    }

    pub(crate) fn one_more(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
            return;
        }
        // Plain numbers, which no panic leaves half-written.
        let mut so_far = self
            .so_far
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        so_far.done += 1;
        if so_far.said.elapsed() >= LINES {
            so_far.said = Instant::now();
            eprintln!("{} {} so far", self.doing, HumanCount(so_far.done));
        }
    }

    /// Writes a line that stays, above the bar.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
