//! The threads around the files, with disks that fail.

use super::{worker::Job, *};
use crate::mailbox::{self, Receiver};
use kv_proto::{
    cluster_map::Configuration,
    ids::{DiskId, Epoch, HistoryId, Member, NodeId},
};
use kv_replication::replica::LogEntry;
use kv_storage::log::{gather::Gather, writer::Media};
use std::{
    env, fs,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    path::Path,
    process::Command,
    sync::atomic::AtomicUsize,
    thread,
    time::{Duration, Instant},
};

fn open(dir: &Path) -> (Arc<Storage>, Sender<Mail>, Receiver<Mail>) {
    let folder = DataDir::open(dir, NodeId::new("a").expect("a name"), DiskId(7)).expect("a folder");
    let (sender, receiver) = mailbox::mailbox();
    let settings = StorageSettings { dir: dir.to_path_buf(), segment_bytes: 1 << 20, max_log_bytes: 3 << 20 };
    (Storage::open(settings, folder, vec![sender.clone()]).expect("opened"), sender, receiver)
}

#[track_caller]
fn wait_for<T>(mail: &Receiver<Mail>, find: impl Fn(Mail) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = mail.try_receive().and_then(&find) {
            return found;
        }
        assert!(Instant::now() < deadline, "no such mail within 30 s");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A process that was killed before its log began has lost nothing; one whose log is gone has.
#[test]
fn a_start_that_did_not_begin_its_log_is_no_loss() {
    let dir = tempfile::tempdir().expect("a folder");
    for generation in 1..=2 {
        let (storage, _, _receiver) = open(dir.path());
        assert_eq!(storage.generation, generation);
    }
    let (storage, mail, _receiver) = open(dir.path());
    let mut stream = storage.start_stream(ExecutorIndex(0), mail).expect("started");
    storage.begin().expect("begun");
    stream.finish();
    drop((stream, storage));
    let (storage, ..) = open(dir.path());
    drop(storage);
    fs::remove_file(dir.path().join("log/0000000003-0000-0000000001.log")).expect("there");
    let folder = DataDir::open(dir.path(), NodeId::new("a").expect("a name"), DiskId(7)).expect("a folder");
    let settings = StorageSettings { dir: dir.path().to_path_buf(), segment_bytes: 1 << 20, max_log_bytes: 3 << 20 };
    let error = Storage::open(settings, folder, vec![mailbox::mailbox().0]).err().expect("it is missing");
    assert!(error.to_string().contains("is not whole"), "{error}");
}

/// The disk is full for one piece, and not for the next.
#[test]
fn of_a_checkpoint_that_failed_nothing_stays_and_nothing_is_published() {
    let dir = tempfile::tempdir().expect("a folder");
    let (storage, _, mail) = open(dir.path());
    let checkpoints = dir.path().join("checkpoints");
    let published = |mail: Mail| if let Mail::Checkpointed { published } = mail { Some(published) } else { None };
    let file = |start| CheckpointFile {
        executor: ExecutorIndex(0),
        partition: PartitionId(3),
        start: Lsn(start),
        anew: start == 4,
        waiting: Arc::new(AtomicUsize::new(8)),
    };
    symlink("/dev/full", checkpoints.join("p00003-00000000000000000005.ckpt.new")).expect("linked");
    storage.ask(Job::Begin(file(5)));
    storage.ask(Job::Piece(file(5), b"header".to_vec()));
    storage.ask(Job::Piece(file(5), b"footer".to_vec()));
    storage.ask(Job::Publish(file(5)));
    assert_eq!([wait_for(&mail, published), wait_for(&mail, published)], [false, false]);
    assert_eq!(fs::read_dir(&checkpoints).expect("a folder").count(), 0);

    storage.ask(Job::Begin(file(6)));
    storage.ask(Job::Piece(file(6), b"whole".to_vec()));
    storage.ask(Job::Publish(file(6)));
    assert!(wait_for(&mail, published));
    let names: Vec<_> = fs::read_dir(&checkpoints).expect("a folder").flatten().map(|e| e.path()).collect();
    assert_eq!(names, [checkpoints.join("p00003-00000000000000000006.ckpt")]);
    assert_eq!(fs::read(&names[0]).expect("there"), b"whole");

    fs::write(checkpoints.join("p00004-00000000000000000007.ckpt"), b"another's").expect("written");
    storage.ask(Job::Begin(file(4)));
    storage.ask(Job::Piece(file(4), b"copied".to_vec()));
    storage.ask(Job::Abandon(file(4)));
    storage.ask(Job::Publish(file(4)));
    assert!(!wait_for(&mail, published));
    let names: Vec<_> = fs::read_dir(&checkpoints).expect("a folder").flatten().map(|e| e.path()).collect();
    assert_eq!(names, [checkpoints.join("p00004-00000000000000000007.ckpt")], "what a copy replaces is gone first");
}

/// What a process lost that was not stopped in order is known until it is there again, however often the node is stopped in
/// order meanwhile.
#[test]
fn what_may_be_lost_is_not_forgotten() {
    let dir = tempfile::tempdir().expect("a folder");
    let incomplete = |storage: &Storage| storage.take_restored(PartitionId(0)).restored.incomplete;
    let stop = |storage: &Storage, complete| {
        storage.note_stopped(complete);
        storage.close().expect("closed");
    };
    let (storage, ..) = open(dir.path());
    assert!(!incomplete(&storage), "a new folder");
    stop(&storage, false);
    drop(storage);
    let (storage, ..) = open(dir.path());
    assert!(!incomplete(&storage), "it was stopped in order");
    drop(storage);
    for complete in [false, true] {
        let (storage, ..) = open(dir.path());
        assert!(incomplete(&storage), "it was not");
        stop(&storage, complete);
    }
    let (storage, ..) = open(dir.path());
    assert!(!incomplete(&storage), "everything was there again");
}

/// A disk that fails once the first segment is made.
struct Failing {
    writes: u32,
    fail: &'static str,
}

impl Media for Failing {
    fn create(&mut self, _: SegmentId, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> std::io::Result<()> {
        self.writes += 1;
        if self.writes > 1 && self.fail == "write" { Err(std::io::Error::other("the disk is gone")) } else { Ok(()) }
    }

    fn sync(&mut self) -> std::io::Result<()> {
        if self.writes > 1 && self.fail == "sync" { Err(std::io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

const FAIL: &str = "KV_TEST_FAIL";

/// Runs itself in a process that has such a disk.
#[test]
fn a_write_or_sync_that_fails_ends_the_process() {
    let Ok(fail) = env::var(FAIL) else {
        for (fail, told) in [("write", "cannot write to segment"), ("sync", "cannot sync segment")] {
            let program = env::current_exe().expect("this program");
            let name = "storage::tests::a_write_or_sync_that_fails_ends_the_process";
            let ended = Command::new(program).args(["--exact", name, "--nocapture"]).env(FAIL, fail).output();
            let ended = ended.expect("it runs");
            let said = String::from_utf8_lossy(&ended.stdout);
            assert_eq!(ended.status.signal(), Some(6), "{said}");
            assert!(
                said.contains(told) && said.contains("the disk is gone") && said.contains("the process ends"),
                "{said}"
            );
        }
        return;
    };
    tracing_subscriber::fmt().with_writer(std::io::stdout).init();
    let dir = tempfile::tempdir().expect("a folder");
    let (storage, sender, mail) = open(dir.path());
    let options = StreamOptions {
        cluster: ClusterId(1),
        identity: storage.identity,
        stream: StreamId { generation: 1, executor: 0 },
        segment_bytes: 1 << 20,
    };
    let media = Failing { writes: 0, fail: if fail == "write" { "write" } else { "sync" } };
    let stream = Stream::start_on(media, &storage, options, sender).expect("the first segment is made");
    let mut gather = Gather::new(1000);
    let leader = Member { node: NodeId::new("a").expect("a name"), disk: DiskId(7) };
    let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader, in_sync: vec![] };
    gather.append(PartitionId(0), &LogEntry::Configuration(configuration), Lsn(0));
    stream.write(gather.take().expect("something"));
    wait_for(&mail, |mail| if let Mail::Flushed(_) = mail { Some(()) } else { None });
}
