//! The flags for what errors of the library name by its key in a recipe.

/// Keys of a recipe and the flags that set them. Keys that are words of prose too are left out.
const FLAGS: [(&str, &str); 28] = [
    ("data.train", "--data"),
    ("data.valid", "--val"),
    ("data.val_fraction", "--val-fraction"),
    ("data.quarantine", "--exclude"),
    ("data.bad_samples", "--bad-samples"),
    // As the errors of `datasets` name them.
    ("allow_empty_classes", "--allow-empty-classes"),
    ("image_column", "--image-column"),
    ("label_column", "--label-column"),
    ("split_column", "--split-column"),
    ("images_root", "--images-root"),
    ("label_from", "--label-from"),
    ("images.orientation", "--orientation"),
    ("images.max_pixels", "--max-pixels"),
    ("batch_size", "--batch-size"),
    ("schedule.learning_rate", "--lr"),
    ("schedule.per_images", "--lr-per"),
    ("ranks.sync_bn", "--sync-bn"),
    ("ranks.dist_bn", "--dist-bn"),
    ("network.dtype", "--dtype"),
    ("transfer.weights", "--weights"),
    ("transfer.weights_key", "--weights-key"),
    ("transfer.freeze", "--freeze"),
    ("transfer.unfreeze_at", "--unfreeze-at"),
    ("transfer.unfreeze_per_epoch", "--unfreeze-per-epoch"),
    ("transfer.layer_decay", "--layer-decay"),
    ("transfer.batchnorm", "--batchnorm"),
    ("transfer.recalibrate_batchnorm", "--recalibrate-batchnorm"),
    ("checkpoints.patience", "--patience"),
];

/// Adds the flags for the keys that an error names.
pub fn with_flags(error: anyhow::Error) -> anyhow::Error {
    let text = runtime::exit::chain(&*error);
    let flags: Vec<String> =
        FLAGS.iter().filter(|(key, _)| names(&text, key)).map(|(key, flag)| format!("{flag} sets {key}")).collect();
    if flags.is_empty() { error } else { anyhow::anyhow!("{text} ({})", flags.join(", ")) }
}

/// Whether a text has a dotted key as a word.
fn names(text: &str, key: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    text.match_indices(key).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + key.len()..]);
        // A full stop ends a sentence.
        let continues = after.starts_with(|c| is_part(c) && c != '.')
            || after.strip_prefix('.').is_some_and(|rest| rest.starts_with(is_part));
        !before.ends_with(is_part) && !continues
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_followed_by_their_flags() {
        let shown = |text: &str| format!("{:#}", with_flags(anyhow::anyhow!("{text}")));
        assert_eq!(
            shown("name them in data.valid, or set data.val_fraction = 0.1"),
            "name them in data.valid, or set data.val_fraction = 0.1 (--val sets data.valid, --val-fraction sets \
             data.val_fraction)"
        );
        assert!(shown("a lower schedule.learning_rate.").ends_with("(--lr sets schedule.learning_rate)"));
        for text in ["cannot read data.validated", "no epochs here", "cannot read a/data.valid.csv"] {
            assert_eq!(shown(text), text);
        }
    }
}
