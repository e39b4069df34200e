//! A card through NVIDIA's driver.
//!
//! In: what [`Card`] asks for. Out: driver calls on one stream for everything in order, and on another for block copies. Deliberately not here: what is
//! computed.
//!
//! What leaves or enters the card goes through pinned memory, which the card reads and writes by itself: a ring of pieces for steps, a buffer of its
//! own for each block copy under way. Errors that the driver says stay with the context are `Lost`: nothing of it can be used again.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys::{self, CUresult};

use crate::card::{Address, Card, CardError, CopyId, Launch};
use crate::cards::{CardInfo, card};
use crate::kernels::Kernel;
use crate::{CudaError, CudaSettings, compile, libraries};

/// The least compute capability: matrix instructions with bf16, copies ahead.
const CAPABILITY_MIN: (u32, u32) = (8, 0);
/// Pieces of pinned memory that uploads go through, and their size.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 4 << 20;
/// Beyond it a block of threads must be allowed its shared memory.
const SHARED_BYTES_FREE: u32 = 48 << 10;
/// Buffers of block copies that are kept for the next ones.
const KEPT_BUFFERS: usize = 64;

/// One card, with the kernels loaded.
#[derive(Debug)]
pub(crate) struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Everything in order.
    stream: sys::CUstream,
    /// Block copies.
    copy_stream: sys::CUstream,
    module: sys::CUmodule,
    functions: BTreeMap<Kernel, sys::CUfunction>,
    memory: Vec<sys::CUdeviceptr>,
    pieces: Vec<Piece>,
    next_piece: usize,
    copies: HashMap<u64, OpenCopy>,
    next_copy: u64,
    /// Pinned buffers that no copy uses.
    kept: Vec<Pinned>,
}

/// Pinned memory of the host.
#[derive(Debug)]
struct Pinned {
    start: *mut u8,
    bytes: usize,
}

/// A piece of the ring, and the event after its last use.
#[derive(Debug)]
struct Piece {
    memory: Pinned,
    used: sys::CUevent,
}

/// A block copy under way.
#[derive(Debug)]
struct OpenCopy {
    memory: Pinned,
    bytes: usize,
    is_export: bool,
    done: sys::CUevent,
}

// SAFETY: handles of the driver may be used from any thread; `enter` makes the context that of the calling one. Pinned memory belongs to this
// value alone.
unsafe impl Send for Gpu {}

/// What a driver error means. Which of them stay with a context, the driver API's list of results says.
pub(crate) fn card_error(call: &str, error: DriverError) -> CardError {
    use CUresult as R;
    let said =
        error.error_string().map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned());
    let text = format!("{call}: {said} ({:?})", error.0);
    match error.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => CardError::OutOfMemory(text),
        R::CUDA_ERROR_DEINITIALIZED
        | R::CUDA_ERROR_DEVICE_UNAVAILABLE
        | R::CUDA_ERROR_NO_DEVICE
        | R::CUDA_ERROR_INVALID_CONTEXT
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_CONTAINED
        | R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | R::CUDA_ERROR_ASSERT
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | R::CUDA_ERROR_INVALID_PC
        | R::CUDA_ERROR_LAUNCH_FAILED
        | R::CUDA_ERROR_SYSTEM_NOT_READY
        | R::CUDA_ERROR_EXTERNAL_DEVICE
        | R::CUDA_ERROR_UNKNOWN => CardError::Lost(text),
        _ => CardError::Fault(text),
    }
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> CardError {
    move |error| card_error(call, error)
}

impl Gpu {
    /// Takes a card, and compiles and loads the kernels.
    ///
    /// # Errors
    /// What is missing, by name.
    pub(crate) fn open(settings: &CudaSettings) -> Result<(Self, CardInfo), CudaError> {
        libraries::driver()?;
        let driver = |call| move |error| CudaError::Driver(card_error(call, error));
        let count = u32::try_from(result::device::get_count().map_err(driver("cuDeviceGetCount"))?).unwrap_or(0);
        let ordinal = settings.ordinal;
        if ordinal >= count {
            return Err(CudaError::NoCard { ordinal, count });
        }
        let info = card(ordinal).map_err(driver("cuDeviceGetAttribute"))?;
        let (major, minor) = info.capability;
        if info.capability < CAPABILITY_MIN {
            return Err(CudaError::ComputeCapability { name: info.name, major, minor });
        }
        let architecture = format!("sm_{major}{minor}");
        let cubin = compile::cached(&architecture, settings.nvrtc.as_deref(), settings.cache_dir.as_deref())?;
        let gpu = Self::load(ordinal, &cubin)?;
        Ok((gpu, info))
    }

    fn load(ordinal: u32, cubin: &[u8]) -> Result<Self, CardError> {
        let device = result::device::get(ordinal.cast_signed()).map_err(failed("cuDeviceGet"))?;
        // SAFETY: the device was just found; the context is released when this value is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        let mut gpu = Self {
            device,
            context,
            stream: std::ptr::null_mut(),
            copy_stream: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            functions: BTreeMap::new(),
            memory: Vec::new(),
            pieces: Vec::new(),
            next_piece: 0,
            copies: HashMap::new(),
            next_copy: 1,
            kept: Vec::new(),
        };
        gpu.enter()?;
        gpu.stream = result::stream::create(StreamKind::NonBlocking).map_err(failed("cuStreamCreate"))?;
        gpu.copy_stream = result::stream::create(StreamKind::NonBlocking).map_err(failed("cuStreamCreate"))?;
        // SAFETY: the image is a whole cubin of NVRTC's, which says how long it is itself.
        gpu.module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(failed("cuModuleLoadData"))?;
        for kernel in Kernel::ALL {
            let name = CString::new(kernel.name()).unwrap_or_default();
            // SAFETY: the module was loaded above.
            let function = unsafe { result::module::get_function(gpu.module, name) };
            gpu.functions.insert(kernel, function.map_err(failed("cuModuleGetFunction"))?);
        }
        for _ in 0..PIECES {
            gpu.pieces.push(Piece { memory: Pinned::new(PIECE_BYTES)?, used: event()? });
        }
        Ok(gpu)
    }

    /// Makes the card's context that of the calling thread.
    fn enter(&self) -> Result<(), CardError> {
        // SAFETY: the context is retained as long as this value lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn wait(&self) -> Result<(), CardError> {
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }

    /// A pinned buffer of at least so many bytes.
    fn buffer(&mut self, bytes: usize) -> Result<Pinned, CardError> {
        match self.kept.iter().position(|kept| kept.bytes >= bytes) {
            Some(at) => Ok(self.kept.swap_remove(at)),
            None => Pinned::new(bytes),
        }
    }

    fn begun(&mut self, memory: Pinned, bytes: usize, is_export: bool) -> Result<CopyId, CardError> {
        let done = event()?;
        // SAFETY: event and stream are this value's.
        unsafe { result::event::record(done, self.copy_stream) }.map_err(failed("cuEventRecord"))?;
        let id = self.next_copy;
        self.next_copy += 1;
        self.copies.insert(id, OpenCopy { memory, bytes, is_export, done });
        Ok(CopyId(id))
    }

    /// The copy stream waits for everything that was launched.
    fn copy_after_launches(&mut self) -> Result<(), CardError> {
        let launched = event()?;
        // SAFETY: event and streams are this value's; destroying an event that is waited for is allowed, the driver keeps it until then.
        unsafe {
            result::event::record(launched, self.stream).map_err(failed("cuEventRecord"))?;
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(self.copy_stream, launched, flags).map_err(failed("cuStreamWaitEvent"))?;
            result::event::destroy(launched).map_err(failed("cuEventDestroy"))
        }
    }
}

fn event() -> Result<sys::CUevent, CardError> {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("cuEventCreate"))
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, CardError> {
        let bytes = bytes.max(1);
        // SAFETY: a context is current; freed in `free`.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed("cuMemHostAlloc"))?;
        Ok(Self { start: start.cast(), bytes })
    }

    /// # Safety
    /// No copy that was begun uses the memory.
    unsafe fn bytes_mut(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.bytes, "a part of the buffer");
        // SAFETY: the memory is this value's; whatever bytes it holds are bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start, count) }
    }

    fn free(&mut self) {
        // SAFETY: allocated in `new`, and not used after this.
        if let Err(error) = unsafe { result::free_host(self.start.cast()) } {
            tracing::debug!(%error, "pinned memory is not freed");
        }
    }
}

impl Card for Gpu {
    fn memory(&self) -> Result<(u64, u64), CardError> {
        self.enter()?;
        result::mem_get_info().map(|(free, total)| (free as u64, total as u64)).map_err(failed("cuMemGetInfo"))
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, CardError> {
        self.enter()?;
        let size = usize::try_from(bytes.max(16)).map_err(|_| CardError::OutOfMemory(format!("{bytes} bytes")))?;
        // SAFETY: a context is current; freed when this value is dropped.
        let start = unsafe { result::malloc_sync(size) }.map_err(failed("cuMemAlloc"))?;
        self.memory.push(start);
        // SAFETY: the memory was just taken.
        unsafe { result::memset_d8_async(start, 0, size, self.stream) }.map_err(failed("cuMemsetD8Async"))?;
        Ok(Address(start))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), CardError> {
        self.enter()?;
        for (at, part) in bytes.chunks(PIECE_BYTES).enumerate() {
            let piece = &mut self.pieces[self.next_piece];
            self.next_piece = (self.next_piece + 1) % PIECES;
            // SAFETY: the event is this piece's; once it has happened, nothing uses the piece.
            unsafe { result::event::synchronize(piece.used) }.map_err(failed("cuEventSynchronize"))?;
            // SAFETY: as above; the destination is memory of this card that the caller owns.
            unsafe {
                let staged = piece.memory.bytes_mut(part.len());
                staged.copy_from_slice(part);
                let to = to.plus((at * PIECE_BYTES) as u64).0;
                result::memcpy_htod_async(to, &*staged, self.stream).map_err(failed("cuMemcpyHtoDAsync"))?;
                result::event::record(piece.used, self.stream).map_err(failed("cuEventRecord"))?;
            }
        }
        Ok(())
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), CardError> {
        self.enter()?;
        for (at, part) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
            let mut staged = self.buffer(part.len())?;
            // SAFETY: the buffer is nobody else's until the stream was waited for; the source is memory of this card.
            let copied = unsafe {
                let staged = staged.bytes_mut(part.len());
                let from = from.plus((at * PIECE_BYTES) as u64).0;
                result::memcpy_dtoh_async(&mut *staged, from, self.stream).map_err(failed("cuMemcpyDtoHAsync"))
            };
            let copied = copied.and_then(|()| self.wait());
            if copied.is_ok() {
                // SAFETY: the copy is done.
                part.copy_from_slice(unsafe { staged.bytes_mut(part.len()) });
            }
            self.kept.push(staged);
            copied?;
        }
        if bytes.is_empty() { self.wait() } else { Ok(()) }
    }

    fn copy(&mut self, from: Address, to: Address, bytes: u64) -> Result<(), CardError> {
        self.enter()?;
        // SAFETY: both are memory of this card that the caller owns.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes as usize, self.stream) }
            .map_err(failed("cuMemcpyDtoDAsync"))
    }

    unsafe fn launch_raw(&mut self, kernel: Kernel, launch: Launch, params: *const c_void) -> Result<(), CardError> {
        self.enter()?;
        let Some(function) = self.functions.get(&kernel).copied() else {
            return Err(CardError::Fault(format!("kernel {} is not loaded", kernel.name())));
        };
        let [x, y, z] = launch.grid;
        if launch.shared_bytes > SHARED_BYTES_FREE {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the function is of the module that is loaded.
            unsafe { result::function::set_function_attribute(function, MOST, bytes) }
                .map_err(failed("cuFuncSetAttribute"))?;
        }
        let mut arguments = [params.cast_mut()];
        let block = (kernel.threads(), 1, 1);
        // SAFETY: by the caller's promise; the driver copies the parameters before it returns.
        unsafe { result::launch_kernel(function, (x, y, z), block, launch.shared_bytes, self.stream, &mut arguments) }
            .map_err(|error| card_error(kernel.name(), error))
    }

    fn begin_export(&mut self, from: Address, bytes: u64) -> Result<CopyId, CardError> {
        self.enter()?;
        self.copy_after_launches()?;
        let count = bytes as usize;
        let mut memory = self.buffer(count)?;
        // SAFETY: the buffer belongs to this copy until its event has happened; the source is memory of this card.
        unsafe { result::memcpy_dtoh_async(memory.bytes_mut(count), from.0, self.copy_stream) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.begun(memory, count, true)
    }

    fn begin_import(&mut self, to: Address, bytes: &[u8]) -> Result<CopyId, CardError> {
        self.enter()?;
        self.copy_after_launches()?;
        let mut memory = self.buffer(bytes.len())?;
        // SAFETY: as for an export.
        unsafe {
            let staged = memory.bytes_mut(bytes.len());
            staged.copy_from_slice(bytes);
            result::memcpy_htod_async(to.0, &*staged, self.copy_stream).map_err(failed("cuMemcpyHtoDAsync"))?;
        }
        self.begun(memory, bytes.len(), false)
    }

    fn poll_copy(&mut self, copy: CopyId) -> Result<Option<Vec<u8>>, CardError> {
        self.enter()?;
        let Some(OpenCopy { done, .. }) = self.copies.get(&copy.0) else {
            return Err(CardError::Fault("no such copy is under way".to_owned()));
        };
        // SAFETY: the event is this copy's.
        match unsafe { result::event::query(*done) } {
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => return Ok(None),
            Err(error) => return Err(card_error("cuEventQuery", error)),
            Ok(()) => {}
        }
        let Some(mut copy) = self.copies.remove(&copy.0) else { return Ok(None) };
        // SAFETY: the copy is done, and its event is not waited for by anything that was not launched yet.
        let bytes = unsafe {
            result::event::destroy(copy.done).map_err(failed("cuEventDestroy"))?;
            if copy.is_export { copy.memory.bytes_mut(copy.bytes).to_vec() } else { Vec::new() }
        };
        if self.kept.len() < KEPT_BUFFERS {
            self.kept.push(copy.memory)
        } else {
            copy.memory.free()
        }
        Ok(Some(bytes))
    }

    fn order_after(&mut self, copy: CopyId) -> Result<(), CardError> {
        self.enter()?;
        let Some(copy) = self.copies.get(&copy.0) else { return Ok(()) };
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are this value's.
        unsafe { result::stream::wait_event(self.stream, copy.done, flags) }.map_err(failed("cuStreamWaitEvent"))
    }
}

impl Drop for Gpu {
    /// Gives everything back. Of a card that is lost nothing can be given back, which is no news then.
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // SAFETY: everything is this value's, was made once, and is waited for before it goes; null handles were never made.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
            if !self.copy_stream.is_null() {
                let _ = result::stream::synchronize(self.copy_stream);
                let _ = result::stream::destroy(self.copy_stream);
            }
            for copy in self.copies.values_mut() {
                let _ = result::event::destroy(copy.done);
                copy.memory.free();
            }
            for piece in &mut self.pieces {
                let _ = result::event::destroy(piece.used);
                piece.memory.free();
            }
            self.kept.iter_mut().for_each(Pinned::free);
            for start in self.memory.drain(..) {
                let _ = result::free_sync(start);
            }
            if !self.module.is_null() {
                let _ = result::module::unload(self.module);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
