//! Which service answers a call: that whose name its path begins with.
//!
//! tonic's own router, axum's, would tell as well, at a dozen allocations a call: it is
//! left with what is called seldom.

use super::{
    Service,
    frame::server::{job_control_server::JobControlServer, job_worker_server::JobWorkerServer},
};
use futures_util::future::Either;
use http::{Request, Response};
use std::{
    convert::Infallible,
    task::{Context, Poll},
};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service as Answers},
    server::NamedService as _,
    service::Routes,
};

/// The services of one listener.
#[derive(Clone)]
pub(super) struct Rooms {
    pub worker: JobWorkerServer<Service>,
    /// None where running actions alone call.
    pub control: Option<JobControlServer<Service>>,
    /// All others, and the answer to who calls none.
    pub others: Routes,
}

type Answer = Either<BoxFuture<Response<Body>, Infallible>, <Routes as Answers<Request<Body>>>::Future>;

impl Answers<Request<Body>> for Rooms {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The two services are ready at any time.
        Answers::<Request<Body>>::poll_ready(&mut self.others, context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let name = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        match (name, &mut self.control) {
            (Some((JobWorkerServer::<Service>::NAME, _)), _) => Either::Left(self.worker.call(request)),
            (Some((JobControlServer::<Service>::NAME, _)), Some(control)) => {
                Either::Left(control.call(request))
            }
            _ => Either::Right(self.others.call(request)),
        }
    }
}
