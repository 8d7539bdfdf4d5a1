//! Reading.

use super::{
    AttemptRow, Ended, Error, List, Store,
    entity::{attempt, job, job_label, job_request, job_text},
    rows,
};
use crate::{
    job::{JobId, Payload, Record, StateName},
    secret,
};
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, Order, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, Select,
    sea_query::{Expr, ExprTrait as _, Query},
};
use std::collections::HashMap;

/// Ids in one statement, at most.
const IDS: usize = 500;

fn bytes(ids: &[JobId]) -> Vec<Vec<u8>> {
    ids.iter().map(|id| id.to_bytes().to_vec()).collect()
}

fn state(name: StateName) -> i64 {
    name.number().into()
}

impl Store {
    /// Those of the jobs that exist, in no order; text and output if asked for.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn records(&self, ids: &[JobId], text: bool) -> Result<Vec<Record>, Error> {
        let mut records = Vec::with_capacity(ids.len());
        for ids in ids.chunks(IDS) {
            let found =
                job::Entity::find().filter(job::Column::Id.is_in(bytes(ids))).all(&self.readers).await?;
            records.extend(self.complete(found, text).await?);
        }
        Ok(records)
    }

    /// Jobs that match, newest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list(&self, list: &List) -> Result<Vec<Record>, Error> {
        let mut all = Condition::all();
        if let Some(ids) = &list.ids {
            all = all.add(job::Column::Id.is_in(bytes(ids)));
        }
        if !list.states.is_empty() {
            all = all.add(job::Column::State.is_in(list.states.iter().copied().map(state)));
        }
        for (name, value) in &list.labels {
            let labelled = Query::select()
                .column(job_label::Column::JobId)
                .from(job_label::Entity)
                .and_where(job_label::Column::Name.eq(name.as_str()))
                .and_where(job_label::Column::Value.eq(value.as_str()))
                .to_owned();
            all = all.add(job::Column::Id.in_subquery(labelled));
        }
        if let Some(prefix) = &list.route_prefix {
            // GLOB and LIKE fold or escape; a comparison of the first bytes does not.
            let length = i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX);
            let route = Expr::col((job::Entity, job::Column::Route));
            let begins = sea_orm::sea_query::Func::cust("substr").arg(route).arg(1).arg(length);
            all = all.add(Expr::expr(begins).eq(prefix.as_str()));
        }
        if let Some(target) = &list.target {
            all = all.add(job::Column::Target.eq(target.as_str()));
        }
        if let Some(created_by) = &list.created_by {
            all = all.add(job::Column::CreatedBy.eq(created_by.as_str()));
        }
        if let Some(at) = list.created_after {
            all = all.add(job::Column::CreatedAt.gte(at));
        }
        if let Some(at) = list.created_before {
            all = all.add(job::Column::CreatedAt.lt(at));
        }
        if let Some((at, id)) = list.before {
            let earlier = Condition::all()
                .add(job::Column::CreatedAt.eq(at))
                .add(job::Column::Id.lt(id.to_bytes().to_vec()));
            // The first bound is what the index is searched by.
            all = all
                .add(job::Column::CreatedAt.lte(at))
                .add(Condition::any().add(job::Column::CreatedAt.lt(at)).add(earlier));
        }
        let found = job::Entity::find()
            .filter(all)
            .order_by(job::Column::CreatedAt, Order::Desc)
            .order_by(job::Column::Id, Order::Desc)
            .limit(list.limit)
            .all(&self.readers)
            .await?;
        self.complete(found, list.text).await
    }

    /// Jobs whose time has come, the earliest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn due(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        let found = scheduled().filter(job::Column::ScheduledAt.lte(now));
        let found = found.order_by_asc(job::Column::ScheduledAt).limit(limit).all(&self.readers).await?;
        self.complete(found, false).await
    }

    /// When the next job is due, UTC milliseconds.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn next_due(&self) -> Result<Option<i64>, Error> {
        let first = scheduled().order_by_asc(job::Column::ScheduledAt).limit(1).all(&self.readers).await?;
        Ok(first.first().map(|row| row.scheduled_at))
    }

    /// Queued jobs of a target but `except`: the urgent first, then the earliest.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn claimable(&self, target: &str, limit: u64, except: &[JobId]) -> Result<Vec<Record>, Error> {
        let found = job::Entity::find()
            .filter(job::Column::State.eq(state(StateName::Queued)))
            .filter(job::Column::Target.eq(target))
            .order_by_desc(job::Column::Priority)
            .order_by_asc(job::Column::ScheduledAt)
            .order_by_asc(job::Column::Id)
            .limit(limit.saturating_add(except.len() as u64))
            .all(&self.readers)
            .await?;
        let except: std::collections::HashSet<Vec<u8>> = bytes(except).into_iter().collect();
        let found = found.into_iter().filter(|row| !except.contains(&row.id));
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        self.complete(found.take(most).collect(), false).await
    }

    /// Waiting jobs that are to be given up.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn overdue(&self, now: i64, limit: u64) -> Result<Vec<Record>, Error> {
        let found = job::Entity::find().filter(job::Column::GiveUpAt.lte(now));
        let found = found.order_by_asc(job::Column::GiveUpAt).limit(limit).all(&self.readers).await?;
        self.complete(found, false).await
    }

    /// When the next waiting job is to be given up, UTC milliseconds.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn next_give_up(&self) -> Result<Option<i64>, Error> {
        let first = job::Entity::find().filter(job::Column::GiveUpAt.is_not_null());
        let first = first.order_by_asc(job::Column::GiveUpAt).limit(1).all(&self.readers).await?;
        Ok(first.first().and_then(|row| row.give_up_at))
    }

    /// How many jobs wait.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn waiting(&self) -> Result<u64, Error> {
        let waiting = [state(StateName::Scheduled), state(StateName::Queued)];
        Ok(job::Entity::find().filter(job::Column::State.is_in(waiting)).count(&self.readers).await?)
    }

    /// What runs, as the tables know it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn running(&self) -> Result<Vec<Record>, Error> {
        let found = job::Entity::find().filter(job::Column::State.eq(state(StateName::Running)));
        self.complete(found.all(&self.readers).await?, false).await
    }

    /// What was sealed of a request.
    ///
    /// # Errors
    /// [`Error`]; corrupt if it cannot be opened.
    pub async fn payload(&self, id: JobId) -> Result<Option<Payload>, Error> {
        let found = job_request::Entity::find().filter(job_request::Column::JobId.eq(id.to_bytes().to_vec()));
        let Some(row) = found.all(&self.readers).await?.into_iter().next() else { return Ok(None) };
        let Some(sealed) = row.sealed else { return Ok(None) };
        let root = row.root_id.and_then(|root| root.try_into().ok()).and_then(|root| self.keys.find(root));
        let root =
            root.ok_or_else(|| Error::Corrupt("job_request.root_id: a root key that is not known".into()))?;
        let plain = secret::open(root, &id.to_bytes(), &sealed);
        let plain = plain.map_err(|error| Error::Corrupt(format!("job_request.sealed: {error}")))?;
        rows::unpack(&plain).map(Some)
    }

    /// The report that ended an attempt, if one did.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ended_by(&self, id: JobId, attempt: u32) -> Result<Option<Ended>, Error> {
        let row = self.attempts(id).await?.into_iter().find(|row| row.attempt == attempt);
        Ok(row.and_then(|row| row.ended_by))
    }

    /// The history of a job's attempts, oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRow>, Error> {
        let found = attempt::Entity::find()
            .filter(attempt::Column::JobId.eq(id.to_bytes().to_vec()))
            .order_by_asc(attempt::Column::Attempt)
            .all(&self.readers)
            .await?;
        found.into_iter().map(rows::read_attempt).collect()
    }

    /// Adds what stands in the other tables.
    async fn complete(&self, found: Vec<job::Model>, text: bool) -> Result<Vec<Record>, Error> {
        let mut records = Vec::with_capacity(found.len());
        let mut found = found.into_iter().peekable();
        while found.peek().is_some() {
            let jobs: Vec<job::Model> = found.by_ref().take(IDS).collect();
            let ids: Vec<Vec<u8>> = jobs.iter().map(|row| row.id.clone()).collect();
            let requests = job_request::Entity::find()
                .filter(job_request::Column::JobId.is_in(ids.clone()))
                .all(&self.readers)
                .await?;
            let mut requests: HashMap<_, _> =
                requests.into_iter().map(|row| (row.job_id.clone(), row)).collect();
            let texts = if text {
                let texts = job_text::Entity::find().filter(job_text::Column::JobId.is_in(ids));
                texts.all(&self.readers).await?
            } else {
                Vec::new()
            };
            let mut texts: HashMap<_, _> = texts.into_iter().map(|row| (row.job_id.clone(), row)).collect();
            let runs = self.runs(&jobs).await?;
            for row in jobs {
                // Deleted between the two reads: it is gone.
                let Some(request) = requests.remove(&row.id) else { continue };
                let text = texts.remove(&row.id);
                let run = runs.get(&(row.id.clone(), row.attempt));
                records.push(rows::record(row, request, text, run)?);
            }
        }
        Ok(records)
    }

    /// The attempts of those that run.
    async fn runs(&self, jobs: &[job::Model]) -> Result<HashMap<(Vec<u8>, i64), attempt::Model>, Error> {
        let running = jobs.iter().filter(|row| row.state == state(StateName::Running));
        let ids: Vec<Vec<u8>> = running.map(|row| row.id.clone()).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows =
            attempt::Entity::find().filter(attempt::Column::JobId.is_in(ids)).all(&self.readers).await?;
        Ok(rows.into_iter().map(|row| ((row.job_id.clone(), row.attempt), row)).collect())
    }
}

fn scheduled() -> Select<job::Entity> {
    job::Entity::find().filter(job::Column::State.eq(state(StateName::Scheduled)))
}
