//! A copy of another replica's table on its way into this one, as whoever embeds a replica treats it: parts are put in place where
//! nothing newer is, the log is applied to them, and from the copy's end on the table is whole and brought to disk.

use super::Disk;
use crate::{
    checks::{Verdict, ensure},
    writes,
};
use kv_proto::{
    codec,
    effect::{Effect, Expiry},
    ids::Lsn,
    replication::Record,
};
use kv_storage::table::{Entry, Table};

/// An entry of a table on its way: LSN, expiry or 0, key, content type, value. The simulation's own form: that of checkpoints
/// has its tests where it is made.
pub(crate) type Travelling = (u64, u64, Vec<u8>, String, Vec<u8>);

/// A copy that is not on disk.
#[derive(Default)]
pub(super) struct Incoming {
    /// Its end, and the digest of the table then; once it is loaded.
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
        process.table = Table::default();
        process.upkeep.give_up_checkpoint();
        process.incoming = Some(Incoming::default());
        self.void = true;
    }

    pub(crate) fn load(&mut self, bytes: &[u8]) {
        let process = self.process.as_mut().expect("it is running");
        let entries: Vec<Travelling> = codec::decode(bytes).expect("what the simulation encoded");
        for (lsn, expires, key, content_type, value) in &entries {
            let expires = Expiry::from_ms(*expires);
            process.table.put_if_newer(key, Entry { lsn: Lsn(*lsn), expires, content_type, value });
        }
    }

    pub(crate) fn keep_table(&mut self, end: Lsn, digest: u64) -> Verdict {
        let process = self.process.as_mut().expect("it is running");
        if let Some(incoming) = &mut process.incoming {
            incoming.keep = Some((end, digest));
        }
        ensure(process.applied.lsn <= end, || format!("{} was applied before a copy to {end} was loaded", process.applied))?;
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
        let (lsn, is_whole) = (record.position.lsn, process.incoming.as_ref().is_none_or(|i| i.whole));
        match Effect::decode(&record.payload).expect("an effect") {
            Effect::Put { key, content_type, value, expires } => {
                let entry = Entry { lsn, expires, content_type, value };
                if is_whole { process.table.put(key, entry) } else { process.table.put_if_newer(key, entry) }
            }
            Effect::Delete { key } if is_whole => process.table.remove(key),
            Effect::Delete { key } => process.table.remove_if_older(lsn, key),
            other => writes::assert_empty(&other),
        }
        process.applied = record.position;
        self.notice_whole_table()?;
        let process = self.process.as_ref().expect("it is running");
        Ok(process.incoming.as_ref().is_none_or(|i| i.whole).then(|| process.table.digest()))
    }

    fn notice_whole_table(&mut self) -> Verdict {
        let process = self.process.as_mut().expect("it is running");
        let (applied, found) = (process.applied, process.table.digest());
        let Some(incoming) = process.incoming.as_mut().filter(|i| !i.whole) else { return Ok(()) };
        let Some((end, digest)) = incoming.keep.filter(|(end, _)| *end <= applied.lsn) else { return Ok(()) };
        incoming.whole = true;
        ensure(found == digest, || format!("{}: a copy to {end} is another table", self.identity.node))
    }
}
