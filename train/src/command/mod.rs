//! The commands, a module each.

pub mod bench;
pub mod finetune;
pub mod lr_find;
pub mod plan;
pub mod pretrain;
pub mod recipes;
pub mod report;
pub mod resume;
pub mod study;

mod dry_run;
