//! A partition while its entries are read.

use super::Partition;
use crate::{
    checkpoint::{self, Checkpoint},
    log::{
        SegmentId, StreamId,
        epochs::Epochs,
        format::{Content, Entry},
        index::Index,
    },
    operations::Operations,
    table::{self, Table},
};
use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{Epoch, HistoryId, Lsn},
    replication::{Position, Record},
};
use kv_replication::replica::Restored;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Replay {
    /// Where its last entry stood.
    pub(super) stream: Option<StreamId>,
    table: Table,
    operations: Operations,
    /// Where its checkpoint starts.
    base: Position,
    /// The last record in the table.
    applied: Position,
    /// The greatest LSN that is known to be committed, in this history.
    committed: Lsn,
    history: Option<HistoryId>,
    /// The records after `applied` that are not void; a copy can come before what it stands before.
    pending: BTreeMap<Lsn, Pending>,
    /// Up to where the log says that there are records, and of which epochs they are.
    end: Epochs,
    configuration: Option<Configuration>,
    /// What the checkpoint says of the table at its end, until it was compared.
    proof: Option<checkpoint::Footer>,
    index: Index,
    /// The places of copies alone.
    copies: Index,
    suspicion: Option<Suspicion>,
    fault: Option<String>,
    awaited: Option<Awaited>,
}

struct Pending {
    record: Record,
    /// Only what is committed is copied: it counts, whatever is missing.
    copy: bool,
}

/// Something is missing that may have been of this partition; what comes next tells.
struct Suspicion {
    what: String,
    /// Up to here the log is as it was known before.
    known: Lsn,
}

/// A reset was read: the table is that of a checkpoint that was made in this epoch or later and starts here or later, as it was
/// before any record.
struct Awaited {
    base: Position,
    epoch: Epoch,
}

impl Replay {
    /// Its checkpoint cannot be used; its configuration is learned all the same, since no replica goes back behind it.
    pub(super) fn refuse_checkpoint(&mut self, why: String) {
        self.fault = Some(why);
    }

    pub(super) fn awaits_copy(&self) -> bool {
        self.awaited.is_some() && self.fault.is_none()
    }

    pub(super) fn take_checkpoint(&mut self, checkpoint: Checkpoint) {
        let Checkpoint { header, table, operations, footer } = checkpoint;
        let checkpoint::Header { configuration, start, .. } = header;
        if let Some(Awaited { base, epoch }) = &self.awaited
            && (configuration.epoch < *epoch || start.lsn < base.lsn)
        {
            return; // it is older than the copy, and what it has may have been lost since
        }
        self.awaited = None;
        (self.table, self.operations) = (table, operations);
        (self.base, self.applied) = (start, start);
        if self.end.last_lsn() < start.lsn {
            self.end = Epochs::at(start);
        }
        self.take_configuration(configuration);
        self.proof = Some(footer);
        self.pending.retain(|lsn, _| *lsn > start.lsn);
        self.advance();
    }

    fn take_configuration(&mut self, configuration: Configuration) {
        if self.configuration.as_ref().is_none_or(|c| c.epoch <= configuration.epoch) {
            self.configuration = Some(configuration);
        }
    }

    /// What is read from here on may have something missing before it.
    pub(super) fn suspect(&mut self, what: &str) {
        let known = self.suspicion.as_ref().map_or(self.end.last_lsn(), |s| s.known);
        self.suspicion = Some(Suspicion { what: what.to_owned(), known });
    }

    /// A record is read that is of the epoch that its partition was in: whether nothing is missing before it that counts,
    /// neither records nor a configuration.
    fn settle(&mut self, position: Position) {
        let Position { epoch, lsn } = position;
        let before = Lsn(lsn.0 - 1);
        // A newer one is that of the checkpoint: what is missing before this record is older still.
        if self.configuration.as_ref().is_some_and(|c| c.epoch >= epoch) {
            self.suspicion.take_if(|suspicion| {
                let same = before <= suspicion.known && self.end.epoch_at(before) == Some(epoch);
                same || before <= self.applied.lsn
            });
        }
    }

    pub(super) fn take(&mut self, entry: Entry, segment: SegmentId, offset: u64) {
        match &entry.content {
            Content::Reset { configuration, base } => return self.reset(configuration.clone(), *base),
            Content::State { configuration, .. } => {
                let history = configuration.history;
                if self.history.replace(history).is_some_and(|before| before != history) {
                    // There was a reset, or a person went on with what this log has: the state says what counts.
                    self.committed = Lsn(0);
                }
                self.take_configuration(configuration.clone());
            }
            Content::Record { .. } | Content::Cut { .. } => {}
        }
        if self.fault.is_some() {
            return;
        }
        match entry.content {
            Content::Record { record, copy: false, current } => {
                let lsn = record.position.lsn;
                if current {
                    self.settle(record.position);
                }
                if lsn <= self.end.last_lsn() {
                    self.void(lsn);
                }
                self.end.push(record.position);
                self.index.add(segment, offset, lsn);
                if lsn > self.applied.lsn {
                    self.pending.insert(lsn, Pending { record, copy: false });
                }
            }
            // It never is of what the log does not know.
            Content::Record { record, copy: true, .. } if record.position.lsn <= self.end.last_lsn() => {
                let lsn = record.position.lsn;
                self.index.add(segment, offset, lsn);
                self.copies.add(segment, offset, lsn);
                if lsn > self.applied.lsn {
                    self.pending.insert(lsn, Pending { record, copy: true });
                }
            }
            Content::Cut { from } => self.void(from),
            Content::State { faulty: true, .. } => {
                self.fault =
                    Some("its log was found damaged at an earlier start, and was not replaced since".to_owned());
            }
            Content::State { last, .. } => self.take_state(last),
            Content::Record { .. } | Content::Reset { .. } => {}
        }
        // Only now: what was committed when the entry was written is of the log with this entry.
        self.committed = self.committed.max(entry.committed);
        self.advance();
    }

    /// The log has all records up to this one here, or has copies of them behind.
    fn take_state(&mut self, last: Position) {
        // Who wrote it may have cut the log back to a record of which it did not know the epoch.
        let by_lsn = last.epoch == Epoch(0) && last.lsn > Lsn(0);
        // A record that was read behind damage stands where it says, and nothing says what stands before it.
        let vouches = by_lsn || self.suspicion.as_ref().is_none_or(|suspicion| last.lsn <= suspicion.known);
        let known = vouches
            && if by_lsn { last.lsn <= self.end.last_lsn() } else { self.end.epoch_at(last.lsn) == Some(last.epoch) };
        if known {
            if last.lsn < self.end.last_lsn() {
                self.void(last.lsn.next());
            }
        } else {
            // The last record, or what it was before a cut, stood in a segment that was let go. Who let it go had copied all that
            // counted up to there; what else is left of that time may have been cut. If the segment was lost instead, there
            // are no copies, and so is a gap.
            self.pending.retain(|_, pending| pending.copy);
            self.index = self.copies.clone();
            let contradicts = last.lsn < self.applied.lsn || last.lsn == self.applied.lsn && last != self.applied;
            if contradicts && last.lsn > self.base.lsn {
                self.take_back(last.lsn);
            }
        }
        if last.lsn > self.end.last_lsn() || !vouches || !by_lsn && self.end.epoch_at(last.lsn) != Some(last.epoch) {
            self.end = Epochs::at(last);
        }
        // What is there is what the state means, and what is not there will show as a gap.
        self.suspicion.take_if(|_| !by_lsn);
    }

    fn reset(&mut self, configuration: Configuration, base: Position) {
        let awaited = Awaited { base, epoch: configuration.epoch };
        let (before, stream) = (self.configuration.take(), self.stream);
        *self = Replay {
            configuration: before,
            committed: base.lsn,
            history: Some(configuration.history),
            end: Epochs::at(base),
            awaited: Some(awaited),
            stream,
            ..Replay::default()
        };
        self.take_configuration(configuration);
    }

    fn void(&mut self, from: Lsn) {
        if self.pending.last_key_value().is_some_and(|(last, _)| *last >= from) {
            self.pending.split_off(&from);
        }
        self.index.void(from);
        self.copies.void(from);
        self.end.cut(from);
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.known = suspicion.known.min(self.end.last_lsn());
        }
        if from <= self.applied.lsn && from > self.base.lsn {
            self.take_back(from);
        }
    }

    fn take_back(&mut self, lsn: Lsn) {
        self.fault = Some(format!(
            "its log takes back the record with LSN {lsn}, which it said was committed: the log is not to be trusted"
        ));
    }

    /// Brings what is known to be committed into the table.
    fn advance(&mut self) {
        if self.awaited.is_some() || self.suspicion.is_some() {
            return;
        }
        self.check_proof();
        while self.fault.is_none()
            && self.applied.lsn < self.committed
            && let Some(Pending { record, .. }) = self.pending.remove(&self.applied.lsn.next())
        {
            let Position { epoch, lsn } = record.position;
            if epoch < self.applied.epoch {
                self.fault = Some(format!("its log has a record of an older epoch at LSN {lsn}"));
                return;
            }
            let effect = Effect::decode(&record.payload).expect("effects are checked when an entry is read");
            self.operations.apply(&record, &effect);
            match effect {
                Effect::Put { key, content_type, value, expires } => {
                    self.table.put_if_newer(key, table::Entry { lsn, expires, content_type, value });
                }
                Effect::Delete { key } => self.table.remove_if_older(lsn, key),
                Effect::Outcome(_) | Effect::Nothing => {}
            }
            self.applied = record.position;
            self.check_proof();
        }
    }

    /// At the end of its checkpoint table and operations have the digests that the checkpoint says.
    fn check_proof(&mut self) {
        if let Some(proof) = self.proof.take_if(|p| p.end <= self.applied.lsn)
            && (self.table.digest() != proof.digest
                || proof.operations_digest.is_some_and(|digest| self.operations.digest() != digest))
        {
            self.fault = Some("its checkpoint and log do not make the table that they say".to_owned());
        }
    }

    pub(super) fn finish(mut self) -> Partition {
        if let Some(proof) = &self.proof {
            // Everything that was in the table when the walk ended was committed. Not before: of two records with an LSN up to
            // there the later one is meant.
            self.committed = self.committed.max(proof.end);
        }
        self.advance();
        let mut tail: Vec<Record> = Vec::new();
        let (mut last, mut falls) = (self.applied, None);
        while let Some(Pending { record, .. }) = self.pending.remove(&last.lsn.next()) {
            if record.position.epoch < last.epoch {
                falls = Some(record.position.lsn);
            }
            last = record.position;
            tail.push(record);
        }
        let claimed = self.end.last_lsn();
        let fault = if let Some(fault) = self.fault {
            Some(fault)
        } else if self.awaited.is_some() {
            Some("the copy of its table from another replica was not completed".to_owned())
        } else if let Some(suspicion) = self.suspicion {
            Some(format!("{}, and may have been its own", suspicion.what))
        } else if let Some(proof) = self.proof {
            let end = proof.end;
            Some(format!("its log ends at LSN {} and does not reach LSN {end}, the end of its checkpoint", last.lsn))
        } else if last.lsn < claimed || !self.pending.is_empty() {
            let whole = last.lsn;
            Some(format!("its log has a gap behind LSN {whole}, though records up to LSN {claimed} were written"))
        } else if let Some(lsn) = falls {
            Some(format!("its log has a record of an older epoch at LSN {lsn}"))
        } else if last.lsn > Lsn(0) && self.configuration.as_ref().is_none_or(|c| c.epoch < last.epoch) {
            Some("its log has records of an epoch without the configuration of it".to_owned())
        } else {
            None
        };
        let configuration = self.configuration;
        let Some(fault) = fault else {
            let restored = Restored { configuration, applied: self.applied, tail, ..Restored::default() };
            let (table, operations) = (self.table, self.operations);
            return Partition { table, operations, restored, released: self.base, index: self.index };
        };
        let fault = Some(format!("{fault}; nothing was removed, and nothing of it is served"));
        // Nothing of it may be taken for what it was: neither its table nor how far that went.
        Partition { restored: Restored { configuration, fault, ..Restored::default() }, ..Partition::default() }
    }
}
