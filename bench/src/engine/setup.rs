//! What all threads of a load share.

use super::{clock::Clock, routes::Routes};
use crate::{
    verify::{Judge, Windows},
    workload::{Values, Workload},
};
use kv_client::OperationIds;
use std::{sync::Arc, time::Duration};

pub(crate) struct Setup {
    pub(crate) workload: Arc<Workload>,
    pub(crate) values: Values,
    /// Slots of each connection.
    pub(crate) pipeline: usize,
    pub(crate) deadline: Duration,
    pub(crate) clock: Clock,
    pub(crate) routes: Routes,
    /// Judges every answer, if they are verified.
    pub(crate) judge: Option<Judge>,
    /// Times without a successful write, if they are of interest.
    pub(crate) windows: Option<Windows>,
    /// Where writes carry ids.
    pub(crate) operation_ids: Option<OperationIds>,
}
