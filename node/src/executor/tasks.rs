//! The tasks of an executor: each waits for one kind of thing and hands it to the [`Executor`].

use super::{Executor, LineKey, Mail, Shared, checkpoint::keep_log_short, links::LinkTask, membership};
use crate::{
    clock,
    mailbox::Receiver,
    storage::Stream,
    transport::{
        connection::Role,
        dial::{CallError, ask_view, call_peer},
        socket::Socket,
    },
};
use futures_lite::{AsyncWriteExt, future::yield_now};
use glommio::{
    channels::local_channel::{self, LocalReceiver, LocalSender},
    net::{TcpListener, TcpStream},
    spawn_local,
    timer::sleep,
};
use kv_proto::{
    hello::{Caller, Hello},
    ids::{ExecutorIndex, Member, NodeId},
};
use std::{
    cell::RefCell,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How many mails are taken in before what they led to is sent.
const MAIL_BATCH: usize = 256;
/// Bounds of the wait before a failed call is tried again.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(1);
/// How long a stopping executor waits until others lead, and how often it looks.
const HANDOFF_TIMEOUT: Duration = Duration::from_millis(1500);
const HANDOFF_TICK: Duration = Duration::from_millis(2);
/// How long a stopping executor whose leadership passed to others tells clients so: those that were refused meanwhile ask again
/// within that time, and would find nobody.
const REDIRECT_FOR: Duration = Duration::from_millis(250);
/// How long a stopping executor waits for what is under way, and how often it looks.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const DRAIN_TICK: Duration = Duration::from_millis(5);

/// Wakes a task of this executor; wakes that nobody waited for are remembered once.
#[derive(Clone)]
pub(super) struct Wake(Rc<(LocalSender<()>, LocalReceiver<()>)>);

impl Default for Wake {
    fn default() -> Self {
        Wake(Rc::new(local_channel::new_bounded(1)))
    }
}

impl Wake {
    pub(super) fn wake(&self) {
        // A full channel means that a wake is remembered already.
        let _ = self.0.0.try_send(());
    }

    pub(super) async fn wait(&self) {
        self.0.1.recv().await;
    }
}

/// The wakes of an executor's tasks.
#[derive(Default)]
pub(super) struct Wakes {
    scanner: Wake,
    links: Vec<Wake>,
    pub(super) controller: Wake,
    pub(super) checkpoints: Wake,
}

impl Executor {
    pub(super) fn wake_scanner(&self) {
        self.wakes.scanner.wake();
    }

    pub(super) fn wake_link_tasks(&self) {
        self.wakes.links.iter().for_each(Wake::wake);
    }

    /// Starts a task that waits until a socket is readable.
    pub(super) fn spawn_arm(&self, key: LineKey) {
        let (this, Some(socket)) = (self.this.clone(), self.line_socket(key)) else { return };
        spawn_next_turn(async move {
            socket.readable().await;
            with(&this, |executor| executor.handle_readable(key));
        });
    }

    /// Starts a task that sends what a socket did not take at once.
    pub(super) fn spawn_drain(&self, key: LineKey) {
        let (this, Some(socket)) = (self.this.clone(), self.line_socket(key)) else { return };
        spawn_next_turn(async move {
            let Ok(fd) = socket.give_up() else { return };
            // SAFETY: the descriptor is owned and passed on; it is a connected TCP socket, a duplicate of one.
            let mut stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
            while let Some(output) = with(&this, |executor| executor.take_output(key)).flatten() {
                if stream.write_all(&output).await.is_err() {
                    with(&this, |executor| executor.remove_line(key));
                    break;
                }
            }
            with(&this, Executor::finish);
        });
    }

    /// Starts the task that keeps the connections to a peer.
    pub(super) fn spawn_link_task(&mut self, node: NodeId) {
        let wake = Wake::default();
        self.wakes.links.push(wake.clone());
        spawn_next_turn(keep_links(self.this.clone(), node, wake));
    }
}

/// Starts a task that runs once the current one has given way. (glommio's `spawn_local` polls a new task at once, and
/// so within the borrow of the executor that starts it.)
fn spawn_next_turn(task: impl Future<Output = ()> + 'static) {
    spawn_local(async move {
        yield_now().await;
        task.await;
    })
    .detach();
}

/// Changes the executor, unless it has ended.
pub(super) fn with<T>(executor: &Weak<RefCell<Executor>>, change: impl FnOnce(&mut Executor) -> T) -> Option<T> {
    executor.upgrade().map(|executor| change(&mut executor.borrow_mut()))
}

/// Runs an executor until it is told to stop and what was under way is done.
pub(crate) async fn run(
    index: ExecutorIndex,
    shared: Arc<Shared>,
    stream: Stream,
    listener: OwnedFd,
    mail: Receiver<Mail>,
) {
    let executor = Executor::new(index, shared.clone(), stream);
    // SAFETY: the descriptor is owned and passed on; it is a bound and listening TCP socket.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    let this = Rc::downgrade(&executor);
    let wake = executor.borrow().wakes.scanner.clone();
    spawn_next_turn(accept(this.clone(), listener));
    spawn_next_turn(scan(this.clone(), wake));
    spawn_next_turn(tick(this.clone(), shared.clone()));
    let wake = executor.borrow().wakes.checkpoints.clone();
    spawn_next_turn(keep_log_short(this.clone(), wake));
    if index == ExecutorIndex(0) {
        spawn_next_turn(membership::keep_registered(this.clone(), shared.clone()));
    }
    while executor.borrow().stopping.is_none() {
        let first = mail.receive().await;
        if take_mail(&executor, first, &mail) == MAIL_BATCH {
            sleep(Duration::ZERO).await; // lets the connections have their turn
        }
    }
    stop(&executor, &shared, &mail).await;
    executor.borrow_mut().close_log();
}

/// Has others lead what is led here, if that is wanted, then finishes what is under way. All executors of the node go through this
/// together: they reach the controller through the first, and each other until all take nothing new.
async fn stop(executor: &RefCell<Executor>, shared: &Shared, mail: &Receiver<Mail>) {
    let began = clock::now();
    executor.borrow_mut().pass_on_leadership();
    let passes = executor.borrow().passes_on_leadership();
    let mut passes_on = true;
    while clock::now().since(began) < HANDOFF_TIMEOUT {
        if passes_on && !executor.borrow().passes_on_leadership() {
            passes_on = false;
            shared.passing_on.fetch_sub(1, Ordering::SeqCst);
        }
        if shared.passing_on.load(Ordering::SeqCst) == 0 {
            break;
        }
        sleep(HANDOFF_TICK).await;
        take_all_mail(executor, mail);
    }
    let began = clock::now();
    executor.borrow_mut().draining = true;
    shared.taking.fetch_sub(1, Ordering::SeqCst);
    let redirects = if passes { REDIRECT_FOR } else { Duration::ZERO };
    while clock::now().since(began) < DRAIN_TIMEOUT {
        // What others have passed on until then is in the mail.
        let last = shared.taking.load(Ordering::SeqCst) == 0;
        take_all_mail(executor, mail);
        if last && executor.borrow().is_quiet() && clock::now().since(began) >= redirects {
            break;
        }
        sleep(DRAIN_TICK).await;
    }
}

fn take_all_mail(executor: &RefCell<Executor>, mail: &Receiver<Mail>) {
    while let Some(first) = mail.try_receive() {
        take_mail(executor, first, mail);
    }
}

/// Takes in a batch of mail and says how many there were.
fn take_mail(executor: &RefCell<Executor>, first: Mail, mail: &Receiver<Mail>) -> usize {
    let mut executor = executor.borrow_mut();
    let mut taken = 1;
    executor.handle_mail(first);
    while taken < MAIL_BATCH
        && let Some(next) = mail.try_receive()
    {
        executor.handle_mail(next);
        taken += 1;
    }
    executor.finish();
    taken
}

/// Accepts connections, for as long as the executor lives: a cancelled accept would lose one.
async fn accept(this: Weak<RefCell<Executor>>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                with(&this, |executor| executor.add_line(Socket::new(stream), Role::Stranger, &[]));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; is the limit of open files too low?");
                sleep(LAST_BACKOFF).await;
            }
        }
    }
}

/// Scans the active connections while there are any.
async fn scan(this: Weak<RefCell<Executor>>, wake: Wake) {
    loop {
        match with(&this, Executor::scan) {
            None => return,
            // The ring gets its turn after every pass.
            Some(true) => sleep(Duration::ZERO).await,
            Some(false) => wake.wait().await,
        }
    }
}

/// Tells the executor the time, as often as something may be due.
async fn tick(this: Weak<RefCell<Executor>>, shared: Arc<Shared>) {
    let heartbeat = {
        let index = with(&this, |executor| executor.index).unwrap_or_default();
        shared.heartbeats[usize::from(index.0)].clone()
    };
    loop {
        let Some(due) = with(&this, |executor| executor.next_tick(clock::now())) else { return };
        sleep(due.max(Duration::from_millis(1))).await;
        heartbeat.beat();
        with(&this, |executor| executor.handle_tick(clock::now()));
    }
}

/// Keeps a connection to every executor of a peer that hosts what is led here.
async fn keep_links(this: Weak<RefCell<Executor>>, node: NodeId, wake: Wake) {
    let mut backoff = Backoff::default();
    loop {
        let asked = with(&this, |e| {
            let cluster = e.view.as_ref().map(|v| v.map.cluster);
            (e.link_task(node), e.shared.me, cluster, e.shared.settings.limits.max_value_bytes)
        });
        let Some((task, me, cluster, max_value_bytes)) = asked else { return };
        let done = match task {
            LinkTask::Wait => {
                wake.wait().await;
                continue;
            }
            LinkTask::AskOwners(address) => {
                let hello = Hello { cluster, caller: Caller::Peer { node: me.node, disk: me.disk }, executor: None };
                match ask_view(&address, node, &hello).await {
                    Ok(view) => with(&this, |executor| executor.handle_owners(node, &view.owners)).unwrap_or(true),
                    Err(error) => {
                        tracing::debug!(peer = %node, address, %error, "cannot ask a peer for its executors");
                        false
                    }
                }
            }
            LinkTask::Call(address, wanted) => {
                let caller = Caller::Peer { node: me.node, disk: me.disk };
                let hello = Hello { cluster, caller, executor: Some(wanted) };
                match call_peer(&address, node, &hello).await {
                    Ok((_, _, welcome)) if welcome.limits.max_value_bytes < max_value_bytes => {
                        tracing::error!(
                            peer = %node,
                            "the peer takes values of up to {} bytes, this node {max_value_bytes}: give both the same \
                             --max-value-bytes",
                            welcome.limits.max_value_bytes
                        );
                        false
                    }
                    Ok((_, _, welcome)) if welcome.executor != wanted => {
                        with(&this, |executor| executor.forget_owners(node, wanted));
                        false
                    }
                    Ok((socket, received, welcome)) => {
                        with(&this, |executor| {
                            let member = Member { node, disk: welcome.disk };
                            let role = Role::PeerOut { member, executor: welcome.executor };
                            if let Some(line) = executor.add_line(socket, role, &received) {
                                executor.handle_link(line, &welcome);
                            }
                        });
                        tracing::info!(peer = %node, address, executor = %welcome.executor, "streaming to a peer");
                        true
                    }
                    Err(error) => {
                        tracing::debug!(peer = %node, address, %error, "cannot call a peer");
                        if matches!(error, CallError::Refused(_)) {
                            with(&this, |executor| executor.forget_owners(node, wanted));
                        }
                        false
                    }
                }
            }
        };
        if done { backoff = Backoff::default() } else { sleep(backoff.next()).await }
    }
}

/// The wait before a failed call is tried again: doubles up to a bound.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(FIRST_BACKOFF)
    }
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LAST_BACKOFF);
        wait
    }
}
