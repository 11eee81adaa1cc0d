//! Where the requests of a unit wait, and which of its lanes serve them. No I/O.
//!
//! # Invariants
//! * Whatever waits, waits for a place that some lane serves.
//! * A lane that is woken for a request sleeps, and has room for it.

use super::{
    operation::Part,
    plan::{Home, Place, Plan, assign},
};
use std::{collections::VecDeque, rc::Rc, sync::Arc};
use tokio::sync::Notify;

/// A connection, as its unit sees it.
#[derive(Debug, Default)]
struct LaneState {
    place: usize,
    notify: Rc<Notify>,
    /// Whether it sleeps and has room for a request.
    is_idle: bool,
    /// Whether it stands in the list of the idle ones, idle or not.
    is_listed: bool,
    is_connected: bool,
}

pub(crate) struct Places {
    plan: Arc<Plan>,
    lanes: Vec<LaneState>,
    /// By place: requests that wait for a slot, and lanes that have one.
    queues: Vec<VecDeque<Part>>,
    idle: Vec<VecDeque<usize>>,
    /// By place: the one whose lanes serve it; another one where it has none.
    served_by: Vec<usize>,
}

impl Places {
    pub(crate) fn new(plan: Arc<Plan>, lanes: usize) -> Places {
        let lanes = (0..lanes).map(|_| LaneState::default()).collect();
        let mut places = Places { plan, lanes, queues: Vec::new(), idle: Vec::new(), served_by: Vec::new() };
        places.settle(&vec![None; places.lanes.len()]);
        places
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Follows another plan from now on. What waited has to be pushed anew.
    pub(crate) fn take_plan(&mut self, plan: Arc<Plan>) -> Vec<Part> {
        let now: Vec<_> = self.lanes.iter().map(|lane| Some(self.plan.places[lane.place].clone())).collect();
        let waiting = self.drain();
        self.plan = plan;
        self.settle(&now);
        waiting
    }

    /// Gives every lane a place, near to where it is now.
    fn settle(&mut self, now: &[Option<Place>]) {
        let places = &self.plan.places;
        for (lane, place) in self.lanes.iter_mut().zip(assign(now, places)) {
            (lane.place, lane.is_idle, lane.is_listed) = (place, false, false);
        }
        self.queues = places.iter().map(|_| VecDeque::new()).collect();
        self.idle = places.iter().map(|_| VecDeque::new()).collect();
        let has_lane = |place: &usize| self.lanes.iter().any(|lane| lane.place == *place);
        // Executors forward to each other; any other node will say that it does not lead.
        let other = |place: usize| {
            let mut same_node = (0..places.len()).filter(|other| places[*other].node == places[place].node);
            same_node.find(has_lane).unwrap_or_else(|| self.lanes.first().map_or(0, |lane| lane.place))
        };
        let server = |place| if has_lane(&place) { place } else { other(place) };
        self.served_by = (0..places.len()).map(server).collect();
    }

    /// Which place a lane serves.
    pub(crate) fn of_lane(&self, lane: usize) -> usize {
        self.lanes[lane].place
    }

    /// Where that is.
    pub(crate) fn place(&self, lane: usize) -> &Place {
        &self.plan.places[self.lanes[lane].place]
    }

    pub(crate) fn notify(&self, lane: usize) -> Rc<Notify> {
        Rc::clone(&self.lanes[lane].notify)
    }

    pub(crate) fn connected(&mut self, lane: usize, is_connected: bool) {
        self.lanes[lane].is_connected = is_connected;
    }

    /// Whether a place has a lane with a connection.
    pub(crate) fn is_reached(&self, place: usize) -> bool {
        self.lanes.iter().any(|lane| lane.place == place && lane.is_connected)
    }

    pub(crate) fn is_any_reached(&self) -> bool {
        self.lanes.iter().any(|lane| lane.is_connected)
    }

    /// A lane has something to do, or cannot do anything: it is not to be woken for a request.
    pub(crate) fn busy(&mut self, lane: usize) {
        self.lanes[lane].is_idle = false;
    }

    /// A lane has a free slot and nothing to put into it: it is woken when there is something.
    pub(crate) fn idle(&mut self, lane: usize) {
        let state = &mut self.lanes[lane];
        state.is_idle = true;
        if !std::mem::replace(&mut state.is_listed, true) {
            self.idle[state.place].push_back(lane);
        }
    }

    pub(crate) fn wake_all(&self) {
        self.lanes.iter().for_each(|lane| lane.notify.notify_one());
    }

    /// Wakes so many idle lanes, wherever they are.
    pub(crate) fn wake(&mut self, mut count: usize) {
        for place in 0..self.idle.len() {
            while count > 0 && self.wake_one(place) {
                count -= 1;
            }
        }
    }

    /// Wakes an idle lane of a place; false if there is none.
    fn wake_one(&mut self, place: usize) -> bool {
        while let Some(lane) = self.idle[place].pop_front() {
            let lane = &mut self.lanes[lane];
            lane.is_listed = false;
            if std::mem::take(&mut lane.is_idle) {
                lane.notify.notify_one();
                return true;
            }
        }
        false
    }

    /// A request waits from now on, and somebody who can take it is awake.
    pub(crate) fn push(&mut self, part: Part, home: Home) {
        // Of what nobody leads any node will say so.
        let place = if let Home::At(place) = home { place } else { 0 };
        let place = self.served_by[place];
        self.queues[place].push_back(part);
        self.wake_one(place);
    }

    /// The request that has waited longest for a place.
    pub(crate) fn pop(&mut self, place: usize) -> Option<Part> {
        self.queues[place].pop_front()
    }

    /// Everything that waits for a place.
    pub(crate) fn take_queue(&mut self, place: usize) -> VecDeque<Part> {
        std::mem::take(&mut self.queues[place])
    }

    /// Everything that waits.
    pub(crate) fn drain(&mut self) -> Vec<Part> {
        self.queues.iter_mut().flat_map(std::mem::take).collect()
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{plan::Owners, samples::led_in_turn};

    #[test]
    fn a_place_without_a_lane_is_served_by_another() {
        let plan = Plan::of_map(&led_in_turn(8, &["a", "b", "c"]), &Owners::new(), None).expect("all are led");
        assert_eq!(Places::new(Arc::new(plan), 2).served_by, [0, 1, 0]);
    }
}
