//! Carrying what came of the rollouts to whoever is to know: people by alerts, the validation by a run.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    alert::{Alert, AlertKind, Alerts},
    lifecycle::Stage,
    rollout::{
        evaluator::News,
        flag::{Change, Component},
        registry::{Actor, RolloutRegistry},
    },
    validation::Validator,
};

/// Knows whom to tell.
#[derive(Debug)]
pub(super) struct RolloutNotifier {
    pub(super) alerts: Arc<Alerts>,
    pub(super) validation: Arc<Validator>,
    pub(super) registry: Arc<RolloutRegistry>,
    pub(super) stage: Stage,
}

/// Synthetic sessions of a validation before a step up, and how long they listen.
const SESSIONS: usize = 100;
const LISTEN: Duration = Duration::from_secs(10);

/// A validation that could not be run is tried again after this.
const AGAIN: Duration = Duration::from_secs(30);

impl RolloutNotifier {
    /// Begins to tell.
    pub(super) fn start(self, news: mpsc::Receiver<News>) {
        let (stage, stopping) = (self.stage.clone(), self.stage.stopping().clone());
        let herald = Arc::new(self);
        stage.spawn("herald", async move {
            let _ = stopping.run_until_cancelled(herald.tell(news)).await;
        });
    }

    /// Until nobody has news any more.
    async fn tell(self: Arc<Self>, mut news: mpsc::Receiver<News>) {
        while let Some(news) = news.recv().await {
            match news {
                News::Tell { component, action, urgent, text, figures } => {
                    warn!(%component, urgent, "{text}");
                    let happening = AlertKind::of_action(action);
                    let component = component.to_string();
                    self.alerts.raise(Alert {
                        component,
                        happening,
                        urgent,
                        text,
                        figures: Some(figures),
                    });
                }
                News::Validate { component, stage } => {
                    let (herald, stopping) = (Arc::clone(&self), self.stage.stopping().clone());
                    self.stage.spawn("validation", async move {
                        let validating = herald.validate(&component, stage);
                        let _ = stopping.run_until_cancelled(validating).await;
                    });
                }
            }
        }
    }

    /// Compares both sides until there is an answer, or the stage is another one: what could not be
    /// compared is neither good nor bad.
    async fn validate(&self, component: &Component, stage: u64) {
        let mut again = tokio::time::interval(AGAIN);
        loop {
            again.tick().await;
            let flags = self.registry.now();
            let Some(standing) = flags.get(component.as_str()) else { return };
            if standing.flag.course.stage != stage {
                return;
            }
            match self.validation.validate(component, SESSIONS, LISTEN).await {
                Ok(outcome) => {
                    let differs = outcome.differs();
                    info!(%component, ?differs, "both sides were compared");
                    let change = Change::Validated { stage, differs };
                    let by = Actor { name: "validation".to_owned(), reason: String::new() };
                    match self.registry.change(component, &change, None, &by).await {
                        Ok(_) => return,
                        Err(err) => warn!(%component, %err, "a validation could not be kept"),
                    }
                }
                Err(err) => warn!(%component, %err, "both sides could not be compared"),
            }
        }
    }
}
