//! Mail between executors: a lock-free queue and a waker for the one who reads it.
//!
//! # Invariants
//! * Any thread sends, one task receives.
//! * The queue itself has no bound; whoever sends bounds what it has under way (see `executor::forward`), so that
//!   an answer can always be delivered.

use atomic_waker::AtomicWaker;
use crossbeam::queue::SegQueue;
use std::{future::poll_fn, sync::Arc, task::Poll};

#[derive(Debug)]
struct Shared<T> {
    queue: SegQueue<T>,
    waker: AtomicWaker,
}

/// The sending side; cheap to clone.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender(self.0.clone())
    }
}

/// The receiving side.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// A new mailbox.
pub(crate) fn mailbox<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared { queue: SegQueue::new(), waker: AtomicWaker::new() });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, mail: T) {
        self.0.queue.push(mail);
        self.0.waker.wake();
    }
}

impl<T> Receiver<T> {
    /// The next mail, if there is one.
    pub(crate) fn try_receive(&self) -> Option<T> {
        self.0.queue.pop()
    }

    /// Waits until there is mail, and takes the first.
    pub(crate) async fn receive(&self) -> T {
        poll_fn(|context| {
            if let Some(mail) = self.0.queue.pop() {
                return Poll::Ready(mail);
            }
            // Registered before the second look, so that mail sent in between wakes this task.
            self.0.waker.register(context.waker());
            self.0.queue.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::{LocalExecutorBuilder, Placement};

    #[test]
    fn mail_from_other_threads_wakes_a_parked_executor_and_keeps_its_order() {
        const SENDERS: u64 = 3;
        const EACH: u64 = 2000;
        let (sender, receiver) = mailbox();
        let reader = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(64 * 1024)
            .spawn(move || async move {
                let mut next = [0; SENDERS as usize];
                for _ in 0..SENDERS * EACH {
                    let (from, number): (usize, u64) = receiver.receive().await;
                    assert_eq!(number, next[from]);
                    next[from] += 1;
                }
            })
            .expect("an executor");
        std::thread::scope(|scope| {
            for from in 0..SENDERS as usize {
                let sender = sender.clone();
                scope.spawn(move || {
                    for number in 0..EACH {
                        sender.send((from, number));
                        if number % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        reader.join().expect("every mail arrived");
    }
}
