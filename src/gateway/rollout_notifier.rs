//! Turns the rollout evaluator's messages into alerts and validation runs.

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

/// Receives the evaluator's messages and acts on them.
#[derive(Debug)]
pub(super) struct RolloutNotifier {
    pub(super) alerts: Arc<Alerts>,
    pub(super) validation: Arc<Validator>,
    pub(super) registry: Arc<RolloutRegistry>,
    pub(super) stage: Stage,
}

/// Sessions per side and duration of a validation that a rollout step requires.
const SESSIONS: usize = 100;
const LISTEN: Duration = Duration::from_secs(10);

/// Pause before a validation that could not be run is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

impl RolloutNotifier {
    /// Starts the receiving task.
    pub(super) fn start(self, messages: mpsc::Receiver<News>) {
        let (stage, stopping) = (self.stage.clone(), self.stage.stopping().clone());
        let notifier = Arc::new(self);
        stage.spawn("rollout_notifier", async move {
            let _ = stopping.run_until_cancelled(notifier.run(messages)).await;
        });
    }

    /// Runs until the evaluator is gone.
    async fn run(self: Arc<Self>, mut messages: mpsc::Receiver<News>) {
        while let Some(message) = messages.recv().await {
            match message {
                News::Tell { component, action, urgent, text, figures } => {
                    warn!(%component, urgent, "{text}");
                    let kind = AlertKind::of_action(action);
                    let component = component.to_string();
                    self.alerts.raise(Alert {
                        component,
                        kind,
                        urgent,
                        text,
                        figures: Some(figures),
                    });
                }
                News::Validate { component, stage } => {
                    let (notifier, stopping) = (Arc::clone(&self), self.stage.stopping().clone());
                    self.stage.spawn("validation", async move {
                        let validating = notifier.validate(&component, stage);
                        let _ = stopping.run_until_cancelled(validating).await;
                    });
                }
            }
        }
    }

    /// Retries the validation until it has an outcome or the rollout is in another stage: a
    /// validation that could not be run says nothing about either side.
    async fn validate(&self, component: &Component, stage: u64) {
        let mut retry = tokio::time::interval(RETRY_INTERVAL);
        loop {
            retry.tick().await;
            let flags = self.registry.now();
            let Some(record) = flags.get(component.as_str()) else { return };
            if record.flag.course.stage != stage {
                return;
            }
            match self.validation.validate(component, SESSIONS, LISTEN).await {
                Ok(outcome) => {
                    let differs = outcome.difference();
                    info!(%component, ?differs, "validation of the rollout step completed");
                    let change = Change::Validated { stage, differs };
                    let by = Actor { name: "validation".to_owned(), reason: String::new() };
                    match self.registry.change(component, &change, None, &by).await {
                        Ok(_) => return,
                        Err(err) => {
                            warn!(%component, %err, "validation outcome not stored, trying again");
                        }
                    }
                }
                Err(err) => {
                    warn!(%component, %err, "validation failed to run, trying again in 30 s")
                }
            }
        }
    }
}
