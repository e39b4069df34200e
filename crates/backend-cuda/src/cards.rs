//! The GPUs of this machine, as the driver and the system tell of them.
//!
//! In: nothing. Out: [`Cards`]. Nothing is taken from any card. Deliberately not here: using one.

use std::path::Path;

use cudarc::driver::{result, sys};

use crate::gpu::card_error;
use crate::{CudaError, libraries};

/// Every card that the driver knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cards {
    /// The newest CUDA that the driver speaks, for example `13.0`.
    pub driver: String,
    /// NVRTC's version, or what is missing of it.
    pub nvrtc: Result<String, String>,
    /// By their ordinals.
    pub cards: Vec<CardInfo>,
}

/// One card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardInfo {
    /// Its number, which `device.ordinal` takes.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Where it is on the bus, for example `0000:17:00.0`.
    pub bus_id: String,
    /// How it is connected, for example `32.0 GT/s PCIe x16`, where the system tells.
    pub link: Option<String>,
}

/// Lists the cards.
///
/// # Errors
/// [`CudaError::NoDriver`] or [`CudaError::Driver`].
pub fn cards(nvrtc: Option<&Path>) -> Result<Cards, CudaError> {
    libraries::driver()?;
    let failed = |call| move |error| CudaError::Driver(card_error(call, error));
    let mut version = 0;
    // SAFETY: the driver is there, and the place can be written.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
    let count = u32::try_from(result::device::get_count().map_err(failed("cuDeviceGetCount"))?).unwrap_or(0);
    let cards =
        (0..count).map(|ordinal| card(ordinal).map_err(failed("cuDeviceGetAttribute"))).collect::<Result<_, _>>()?;
    Ok(Cards {
        driver: format!("{}.{}", version / 1_000, version % 1_000 / 10),
        nvrtc: libraries::nvrtc(nvrtc).map(|version| version.to_string()).map_err(|error| error.to_string()),
        cards,
    })
}

/// One card; it exists.
pub(crate) fn card(ordinal: u32) -> Result<CardInfo, result::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal.cast_signed())?;
    let attribute = |attribute| {
        // SAFETY: the device was just found.
        unsafe { result::device::get_attribute(device, attribute) }.map(|value| u32::try_from(value).unwrap_or(0))
    };
    let bus = [
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
    ];
    let bus_id = format!("{:04x}:{:02x}:{:02x}.0", bus[0], bus[1], bus[2]);
    Ok(CardInfo {
        ordinal,
        name: result::device::get_name(device)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        link: link(Path::new("/sys/bus/pci/devices"), &bus_id),
        bus_id,
    })
}

/// The most speed and width of a device's link, as the system says. What it runs at now may be less: links sleep.
fn link(devices: &Path, bus_id: &str) -> Option<String> {
    let read = |name| std::fs::read_to_string(devices.join(bus_id).join(name)).ok().map(|text| text.trim().to_owned());
    Some(format!("{} x{}", read("max_link_speed")?, read("max_link_width")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_link_is_what_the_system_says() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("0000:17:00.0");
        std::fs::create_dir(&device).unwrap();
        assert_eq!(link(folder.path(), "0000:17:00.0"), None);
        std::fs::write(device.join("max_link_speed"), "32.0 GT/s PCIe\n").unwrap();
        std::fs::write(device.join("max_link_width"), "16\n").unwrap();
        assert_eq!(link(folder.path(), "0000:17:00.0").as_deref(), Some("32.0 GT/s PCIe x16"));
    }

    /// On a machine without a driver the error says what to do; on one with a driver, cards have names.
    #[test]
    fn cards_are_listed_or_what_is_missing_is_named() {
        match cards(None) {
            Ok(found) => assert!(found.cards.iter().all(|card| !card.name.is_empty() && card.memory_bytes > 0)),
            Err(error) => assert!(error.to_string().contains("driver"), "{error}"),
        }
    }
}
