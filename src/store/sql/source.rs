//! Where connections come from: a pool of the store's own, or the user's.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::pool::PoolConnection;

use super::failure::judge;
use super::pool::{Lent, Pool};
use super::{Connection, Dialect, Then};

pub(super) enum Source<D: Dialect> {
    Given(sqlx::Pool<D::Db>),
    Own(Arc<Pool<D>>),
}

impl<D: Dialect> Source<D> {
    pub(super) async fn acquire(&self) -> sqlx::Result<Lease<D>> {
        Ok(match self {
            Self::Given(pool) => Lease::Given(Given {
                connection: pool.acquire().await?,
                is_fit: false,
            }),
            Self::Own(pool) => Lease::Own(pool.acquire().await?),
        })
    }

    /// The server has not answered in time: connections that rest may be as dead.
    pub(super) fn doubt(&self) {
        if let Self::Own(pool) = self {
            pool.doubt();
        }
    }
}

/// A connection on loan. One that is not given back is closed, for an answer may be outstanding.
pub(super) enum Lease<D: Dialect> {
    Given(Given<D>),
    Own(Lent<D>),
}

pub(super) struct Given<D: Dialect> {
    connection: PoolConnection<D::Db>,
    is_fit: bool,
}

impl<D: Dialect> Lease<D> {
    /// Gives the connection back, as far as it is fit after this answer.
    pub(super) fn give_back<T>(self, answer: &sqlx::Result<T>) {
        let is_fit = match answer {
            Ok(_) => true,
            Err(error) => judge::<D>(error).then != Then::HangUp,
        };
        match self {
            Self::Given(mut given) => given.is_fit = is_fit,
            Self::Own(lent) => lent.give_back(is_fit),
        }
    }
}

impl<D: Dialect> Drop for Given<D> {
    fn drop(&mut self) {
        if !self.is_fit {
            self.connection.close_on_drop();
        }
    }
}

impl<D: Dialect> Deref for Lease<D> {
    type Target = Connection<D>;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Given(given) => &given.connection,
            Self::Own(lent) => lent,
        }
    }
}

impl<D: Dialect> DerefMut for Lease<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Given(given) => &mut given.connection,
            Self::Own(lent) => lent,
        }
    }
}
