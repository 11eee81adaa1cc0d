//! The requests of one connection that wait for their answers: ids, places, wakers. Pure but for the wakers.
//!
//! # Invariants
//! * A place stays taken until its answer comes or the connection closes, whatever became of who waited: a late
//!   answer is never taken for that of another request.
//! * An answer whose id was never given out, or was answered before, is an error of the node.

use crate::answer::Answer;
use slab::Slab;
use std::{sync::Arc, task::Waker};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Whether all bytes of the request were given to the network.
    pub(crate) sent: bool,
    /// Why the connection is gone.
    pub(crate) cause: Arc<str>,
}

#[derive(Debug, Default)]
pub(crate) struct Waiting {
    places: Slab<Place>,
    sequence: u32,
}

#[derive(Debug)]
struct Place {
    id: u64,
    /// Position in the connection's stream behind the last byte of the request.
    end: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    /// Nobody waits any more.
    Abandoned,
    Done(Result<Answer, Lost>),
}

/// The node answered what nobody asked.
#[derive(Debug)]
pub(crate) struct UnknownId;

impl Waiting {
    /// The id that the next [`Waiting::insert`] gives.
    pub(crate) fn next_id(&self) -> u64 {
        // The key finds the place, the sequence tells its earlier tenants from this one.
        u64::from(self.sequence) << 32 | self.places.vacant_key() as u64
    }

    /// Takes a place for the request that ends at `end`.
    pub(crate) fn insert(&mut self, end: u64) -> usize {
        let id = self.next_id();
        self.sequence = self.sequence.wrapping_add(1);
        self.places.insert(Place { id, end, state: State::Waiting(None) })
    }

    /// Takes the answer out of its place if it is there, else remembers whom to wake.
    ///
    /// # Panics
    /// When the place was given up before.
    pub(crate) fn poll(&mut self, place: usize, waker: &Waker) -> Option<Result<Answer, Lost>> {
        match &mut self.places[place].state {
            State::Waiting(Some(known)) if known.will_wake(waker) => return None,
            State::Waiting(known) => {
                *known = Some(waker.clone());
                return None;
            }
            State::Abandoned => unreachable!("an abandoned place is not polled"),
            State::Done(_) => {}
        }
        match self.places.remove(place).state {
            State::Done(result) => Some(result),
            State::Waiting(_) | State::Abandoned => unreachable!("just seen to be done"),
        }
    }

    /// Nobody waits for this answer any more.
    pub(crate) fn abandon(&mut self, place: usize) {
        match &mut self.places[place].state {
            State::Done(_) => drop(self.places.remove(place)),
            state => *state = State::Abandoned,
        }
    }

    /// Puts an answer into its place.
    pub(crate) fn answer(&mut self, id: u64, answer: Answer) -> Result<Option<Waker>, UnknownId> {
        let key = (id & u64::from(u32::MAX)) as usize;
        let place = self.places.get_mut(key).filter(|p| p.id == id).ok_or(UnknownId)?;
        match &mut place.state {
            State::Waiting(waker) => {
                let waker = waker.take();
                place.state = State::Done(Ok(answer));
                Ok(waker)
            }
            State::Abandoned => {
                self.places.remove(key);
                Ok(None)
            }
            State::Done(_) => Err(UnknownId),
        }
    }

    /// Ends all waiting: the connection is gone after `written` bytes. Gives back whom to wake.
    pub(crate) fn close(&mut self, written: u64, cause: &Arc<str>) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.places.retain(|_, place| match &mut place.state {
            State::Waiting(waker) => {
                wakers.extend(waker.take());
                place.state = State::Done(Err(Lost { sent: place.end <= written, cause: Arc::clone(cause) }));
                true
            }
            State::Abandoned => false,
            State::Done(_) => true,
        });
        wakers
    }

    /// How many places are taken.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noop() -> &'static Waker {
        Waker::noop()
    }

    #[test]
    fn answers_find_their_requests_in_any_order() {
        let mut waiting = Waiting::default();
        let requests: Vec<_> = (0..3).map(|i| (waiting.next_id(), waiting.insert(i))).collect();
        assert!(waiting.poll(requests[0].1, noop()).is_none());
        for (id, _) in requests.iter().rev() {
            waiting.answer(*id, Answer::Pong).expect("asked");
        }
        for (_, place) in &requests {
            assert_eq!(waiting.poll(*place, noop()), Some(Ok(Answer::Pong)));
        }
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn an_abandoned_place_is_kept_until_its_late_answer() {
        let mut waiting = Waiting::default();
        let (late, place) = (waiting.next_id(), waiting.insert(1));
        waiting.abandon(place);
        assert_eq!(waiting.len(), 1, "the answer may still come");
        let (next, other) = (waiting.next_id(), waiting.insert(2));
        assert_ne!(place, other);
        assert!(matches!(waiting.answer(late, Answer::Missing), Ok(None)));
        assert_eq!(waiting.len(), 1);
        waiting.answer(next, Answer::Pong).expect("asked");
        assert_eq!(waiting.poll(other, noop()), Some(Ok(Answer::Pong)));
    }

    #[test]
    fn an_answer_that_was_taken_or_given_up_leaves_no_place() {
        let mut waiting = Waiting::default();
        let (id, place) = (waiting.next_id(), waiting.insert(1));
        waiting.answer(id, Answer::Pong).expect("asked");
        waiting.abandon(place);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn answers_that_nobody_asked_for_are_errors() {
        let mut waiting = Waiting::default();
        waiting.answer(7, Answer::Pong).expect_err("never asked");
        let (id, place) = (waiting.next_id(), waiting.insert(1));
        waiting.answer(id, Answer::Pong).expect("asked");
        waiting.answer(id, Answer::Pong).expect_err("answered twice");
        assert!(waiting.poll(place, noop()).is_some());
        waiting.insert(2);
        waiting.answer(id, Answer::Pong).expect_err("the place has another tenant");
    }

    #[test]
    fn closing_tells_what_was_sent_from_what_was_not() {
        let mut waiting = Waiting::default();
        let places: Vec<_> = [10, 20, 30].map(|end| waiting.insert(end)).into();
        let abandoned = waiting.insert(40);
        waiting.abandon(abandoned);
        waiting.close(20, &"gone".into());
        let sent: Vec<_> =
            places.iter().map(|p| waiting.poll(*p, noop()).expect("done").expect_err("lost").sent).collect();
        assert_eq!(sent, [true, true, false]);
        assert_eq!(waiting.len(), 0);
    }
}
