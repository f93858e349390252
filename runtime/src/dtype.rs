//! Checks that a device supports a floating-point type.

use std::fmt::Display;

use burn::{
    backend::{Backend, DTypeUsage, Dispatch},
    tensor::{DType, Device, FloatDType},
};

use crate::{Error, Result};

/// The floating-point types of networks.
const TYPES: [(FloatDType, &str); 3] = [(FloatDType::F32, "f32"), (FloatDType::F16, "f16"), (FloatDType::BF16, "bf16")];

/// Checks that `device`, called `name` in messages, supports `dtype`.
///
/// # Errors
/// Fails if it does not; the error names the cause and the supported types.
pub fn check(name: impl Display, device: &Device, dtype: FloatDType) -> Result<()> {
    if device.supports_dtype(dtype) {
        return Ok(());
    }
    let wanted = TYPES.iter().find(|(known, _)| *known == dtype).map_or("this type", |(_, name)| name);
    let usage = Dispatch::dtype_usage(device.as_dispatch(), DType::from(dtype));
    let cause = match usage.contains(DTypeUsage::Storage) {
        true => format!("it stores {wanted} but has no arithmetic in it"),
        false => format!("its backend has no {wanted}"),
    };
    let others: Vec<&str> =
        TYPES.iter().filter(|(known, _)| device.supports_dtype(*known)).map(|(_, name)| *name).collect();
    Err(Error::Dtype(format!(
        "{name} does not compute in {wanted}: {cause}; use --dtype {} or another --backend",
        others.join(", --dtype ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flex_computes_in_all_types() {
        for (dtype, _) in TYPES {
            assert!(check("flex", &Device::flex(), dtype).is_ok());
            assert!(check("flex", &Device::flex().autodiff(), dtype).is_ok());
        }
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn a_type_that_a_backend_lacks_is_refused_with_the_cause_and_a_remedy() {
        #[allow(deprecated)] // As long as Burn ships it.
        let error = check("ndarray", &Device::ndarray(), FloatDType::BF16).unwrap_err().to_string();
        assert_eq!(
            error,
            "ndarray does not compute in bf16: its backend has no bf16; use --dtype f32 or another --backend"
        );
    }
}
