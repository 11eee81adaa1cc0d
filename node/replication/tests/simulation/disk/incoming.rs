//! A copy of another replica's table on its way into this one, as whoever embeds a replica treats it: the log is applied to what
//! its parts say, and from the copy's end on the table is whole and brought to disk.

use super::{Disk, Process};
use crate::checks::{Verdict, ensure};
use kv_proto::{effect::Effect, ids::Lsn, replication::Record};
use kv_storage::{
    copy,
    operations::Operations,
    table::{Entry, Table},
};

/// A copy that is not on disk.
#[derive(Default)]
pub(super) struct Incoming {
    /// Its end, and the digest then; once it is loaded.
    keep: Option<(Lsn, u64)>,
    /// The table is that of all records up to some one.
    whole: bool,
    /// It is on disk.
    kept: bool,
}

impl Incoming {
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// A checkpoint of the table is published.
    pub(super) fn handle_published(&mut self) {
        self.kept = true;
    }
}

impl Disk {
    /// Whatever is here is void. The checkpoint stays until the reset is on disk: it may be all that has the newest epoch.
    pub(crate) fn reset_table(&mut self) {
        let process = self.process.as_mut().expect("it is running");
        (process.table, process.operations) = (Table::default(), Operations::default());
        process.upkeep.give_up_checkpoint();
        process.incoming = Some(Incoming::default());
        self.void = true;
    }

    pub(crate) fn load(&mut self, part: &[u8]) -> Verdict {
        let (node, process) = (self.identity.node, self.process.as_mut().expect("it is running"));
        let taken = copy::take_part(part, &mut process.table, &mut process.operations);
        taken.map_err(|error| format!("{node}: a part of a copy: {error}"))
    }

    pub(crate) fn keep_table(&mut self, end: Lsn, digest: u64) -> Verdict {
        let (node, process) = (self.identity.node, self.process.as_mut().expect("it is running"));
        let Some(incoming) = &mut process.incoming else { return Err(format!("{node} keeps what was not sent")) };
        let (applied, base) = (process.applied, self.live.base);
        ensure(applied == base, || format!("{node} applied {applied} before a copy from {base} was there"))?;
        incoming.keep = Some((end, digest));
        self.notice_whole_table()
    }

    /// Whether the copy came to disk since this was asked last.
    pub(crate) fn take_copy_kept(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        process.incoming.take_if(|incoming| incoming.kept).is_some()
    }

    /// Brings a committed record into the table; its digest, if the table is whole.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<Option<u64>, String> {
        let process = self.process.as_mut().expect("it is running");
        let (lsn, is_whole) = (record.position.lsn, process.is_whole());
        let effect = Effect::decode(&record.payload).expect("an effect");
        process.operations.apply(record, &effect);
        match effect {
            Effect::Put { key, content_type, value, expires } => {
                let entry = Entry { lsn, expires, content_type, value };
                if is_whole { process.table.put(key, entry) } else { process.table.put_if_newer(key, entry) }
            }
            Effect::Delete { key } if is_whole => process.table.remove(key),
            Effect::Delete { key } => process.table.remove_if_older(lsn, key),
            Effect::Outcome(_) | Effect::Nothing => {}
        }
        process.applied = record.position;
        self.notice_whole_table()?;
        let process = self.process.as_ref().expect("it is running");
        Ok(process.is_whole().then(|| process.digest()))
    }

    fn notice_whole_table(&mut self) -> Verdict {
        let process = self.process.as_mut().expect("it is running");
        let (applied, found) = (process.applied, process.digest());
        let Some(incoming) = process.incoming.as_mut().filter(|i| !i.whole) else { return Ok(()) };
        let Some((end, digest)) = incoming.keep.filter(|(end, _)| *end <= applied.lsn) else { return Ok(()) };
        incoming.whole = true;
        ensure(found == digest, || format!("{}: a copy to {end} is another table", self.identity.node))
    }
}

impl Process {
    fn is_whole(&self) -> bool {
        self.incoming.as_ref().is_none_or(|incoming| incoming.whole)
    }
}
