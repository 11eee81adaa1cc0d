//! What cannot have happened, in lines that a person understands.

use crate::{
    linear::Operation,
    register::{Action, Held, Initial, Recorded},
};
use std::fmt;

/// Operations shown that were over before the offending one began.
const BEFORE: usize = 5;
/// Operations shown that overlap the offending one.
const BESIDE: usize = 12;

/// The operation that fits nowhere in any order that was tried, and what happened around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    /// What the key had at first.
    pub initial: Initial,
    /// By their calls.
    pub lines: Vec<Line>,
    /// Operations that overlap the offending one and are not among the lines.
    pub omitted: usize,
}

/// An operation of an offending stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was asked and answered, and when, in microseconds.
    pub operation: Operation<Action>,
    /// What it has to do with the offence.
    pub part: Part,
    /// It was answered that it was not applied.
    pub refused: bool,
}

/// What an operation has to do with an offence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is the one that fits nowhere.
    Offends,
    /// It was over before.
    Before,
    /// It overlaps the one that offends.
    Beside,
    /// It wrote the value that the one that offends found.
    Origin,
}

impl Offence {
    pub(crate) fn of(recorded: &[Recorded], offending: usize, initial: Initial) -> Self {
        let operation = &recorded[offending].operation;
        let returned = operation.returned.unwrap_or(u64::MAX);
        let (mut before, mut beside, mut origin) = (Vec::new(), Vec::new(), Vec::new());
        for (at, other) in recorded.iter().enumerate().filter(|(at, _)| *at != offending) {
            let over = other.operation.returned.is_some_and(|returned| returned < operation.called);
            let writes = other.operation.what.writes();
            if writes.is_some() && writes == operation.what.observes() {
                origin.push(at);
            } else if other.refused {
                continue;
            } else if over {
                before.push(at);
            } else if other.operation.called <= returned {
                beside.push(at);
            }
        }
        before.sort_by_key(|at| recorded[*at].operation.returned);
        let omitted = beside.len().saturating_sub(BESIDE);
        // Those in doubt overlap everything since their call: the first to go are those called longest ago.
        beside.sort_by_key(|at| recorded[*at].operation.called);
        let parts = [
            (&[offending][..], Part::Offends),
            (&before[before.len().saturating_sub(BEFORE)..], Part::Before),
            (&beside[omitted..], Part::Beside),
            (&origin[..], Part::Origin),
        ];
        let line = |at: usize, part| {
            let Recorded { operation, refused } = recorded[at].clone();
            Line { operation, part, refused }
        };
        let mut lines: Vec<_> =
            parts.into_iter().flat_map(|(ats, part)| ats.iter().map(move |at| line(*at, part))).collect();
        lines.sort_by_key(|line| line.operation.called);
        Offence { initial, lines, omitted }
    }

    /// The operation that fits nowhere.
    #[must_use]
    pub fn operation(&self) -> Option<&Operation<Action>> {
        self.lines.iter().find(|line| line.part == Part::Offends).map(|line| &line.operation)
    }
}

impl std::error::Error for Offence {}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let initial = match self.initial {
            Initial::Absent => "nothing".to_owned(),
            Initial::Holds(number) => format!("value {number}"),
            Initial::Unknown => "whatever is read first".to_owned(),
        };
        writeln!(f, "no order of these operations explains the marked one; the key had {initial} at first")?;
        write!(f, "  {:>15} {:>15}  operation", "called us", "returned us")?;
        for Line { operation, part, refused } in &self.lines {
            let mark = if *part == Part::Offends { '>' } else { ' ' };
            let returned = match operation.returned {
                Some(returned) => returned.to_string(),
                None if *refused => "not applied".to_owned(),
                None => "in doubt".to_owned(),
            };
            write!(f, "\n{mark} {:>15} {returned:>15}  {}", operation.called, operation.what)?;
        }
        if self.omitted > 0 {
            write!(f, "\n  and {} that were called earlier and overlap the marked one", self.omitted)?;
        }
        Ok(())
    }
}

/// A value in a sentence.
pub(crate) fn value(held: Held) -> String {
    held.map_or_else(|| "nothing".to_owned(), |number| format!("value {number}"))
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Action::Read(held) => write!(f, "read, found {}", value(held)),
            Action::Write(new) => write!(f, "write of value {new}"),
            Action::Delete { found } => f.write_str(match found {
                Some(true) => "delete, found something",
                Some(false) => "delete, found nothing",
                None => "delete",
            }),
            Action::Swap { expected, new } => write!(f, "write of value {new} in place of value {expected}"),
            Action::Mismatch { expected } => {
                write!(f, "conditional write, refused because value {expected} was not there")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::register::{Action, History, Initial};

    /// What a person gets to see of a lost write.
    #[test]
    fn an_offence_is_a_table() {
        let mut history = History::new(Initial::Absent, 100);
        let mut done = |called, returned, what| {
            let ticket = history.call(called, what).expect("room");
            history.returned(ticket, returned, what);
        };
        done(0, 90, Action::Write(1));
        done(100, 190, Action::Write(2));
        done(300, 390, Action::Read(Some(1)));
        let _in_doubt = history.call(150, Action::Delete { found: None });
        let offence = history.check().expect_err("value 2 is lost");
        let expected = "\
no order of these operations explains the marked one; the key had nothing at first
        called us     returned us  operation
                0              90  write of value 1
              100             190  write of value 2
              150        in doubt  delete
>             300             390  read, found value 1";
        assert_eq!(offence.to_string(), expected);
        assert_eq!(offence.operation().map(|o| o.called), Some(300));
    }
}
