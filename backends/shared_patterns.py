"""What the logs of more than one engine can tell: of any process on Linux, and of those that compute with PyTorch.

Rows are tried in their order. A row that is more particular stands above one that would match its text too.
"""

from __future__ import annotations

from backends.pattern import pattern

CUDA_ERRORS = "https://docs.nvidia.com/cuda/cuda-runtime-api, cudaGetErrorString"

COMMON = (
    pattern(
        "shared_memory",
        r"shared memory segment /dev/shm|/dev/shm/.*no space left on device|no space left on device.*/dev/shm"
        r"|out of shared memory|unable to (open|mmap|allocate|resize) shared memory",
        "The shared memory of this machine or container is too small.",
        "Give it more: docker run --ipc=host or --shm-size=8g; in Kubernetes an emptyDir of medium Memory at /dev/shm.",
        source="NCCL src/misc/shmutils.cc 'Error while creating shared memory segment'; torch ATen/MapAllocator.cpp",
    ),
    pattern(
        "port_in_use",
        r"address already in use|\[errno 98\]|couldn't bind HTTP server socket",
        "Another process took the engine's port while it was starting.",
        "It is tried again on another port.",
        source="errno 98, Linux; vLLM 0.32 and uvicorn 0.54 print it as it is; llama.cpp tools/server/server-http.cpp",
        permanent=False,
    ),
    pattern(
        "disk_full",
        r"no space left on device|\[errno 28\]|disk quota exceeded|\[errno 122\]",
        "The disk is full, or this user's share of it.",
        "Free space on the disk that holds the cache and the temporary folder, then load the model again.",
        source="errno 28 and 122, Linux",
    ),
    pattern(
        "driver_missing",
        r"libcuda\.so\.1: cannot open shared object file",
        "The library of the NVIDIA driver, libcuda, is not on this machine.",
        "Install it; start a container with its GPUs (docker run --gpus all); or use an engine built for the CPU.",
        source="glibc 2.36 ld.so, for libraries that are linked with the driver",
    ),
    pattern(
        "library_too_old",
        r"version `(?P<version>(GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found",
        "The engine was built for a newer system: {version} is not in this one's C or C++ library.",
        "For GLIBCXX and CXXABI install libstdcxx-ng into a conda environment; for GLIBC use an older build.",
        source="glibc 2.36 ld.so",
    ),
    pattern(
        "library_missing",
        r"(?P<library>lib\S+\.so\S*): cannot open shared object file",
        "The engine needs the shared library {library}, which is not on this machine.",
        "Install it, or put its folder into LD_LIBRARY_PATH under the model's env.",
        source="glibc 2.36 ld.so",
    ),
    pattern(
        "module_missing",
        r"ModuleNotFoundError: No module named '(?P<module>[^']+)'",
        "The engine's Python environment has no module {module}.",
        "Point engines.<name> at the environment the engine is installed in, or install the module there.",
        source="CPython 3.11",
    ),
    pattern(
        "permission_denied",
        r"\[errno 13\] permission denied: '?(?P<path>[^']+)|PermissionError at (?P<cache>\S+)",
        "The engine may not use {path}{cache}.",
        "Change its owner or its mode for the user that runs unigate, or name another folder.",
        source="errno 13, CPython 3.11; transformers 5.19 utils/hub.py",
    ),
    pattern(
        "too_many_open_files",
        # Not within back quotes: vLLM warns of a low limit in these words at every start (utils/system_utils.py).
        r"(?<!`)OSError: \[errno 24\]|: too many open files",
        "The engine has as many files open as one process may.",
        "Raise the limit: ulimit -n 65536 before unigate, or LimitNOFILE in its systemd unit.",
        source="errno 24, Linux",
    ),
    pattern(
        "too_many_processes",
        r"can't start new thread|pthread_create failed|\[errno 11\] resource temporarily unavailable",
        "The engine could not start another process or thread.",
        "Raise the limit (ulimit -u, TasksMax in systemd, --pids-limit of a container), or lower OMP_NUM_THREADS.",
        source="CPython 3.11 RuntimeError, libgomp and OpenBLAS, errno 11",
    ),
    pattern(
        "host_out_of_memory",
        r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|std::bad_alloc|^MemoryError\b"
        r"|cannot allocate memory|\[errno 12\]",
        "The machine's memory is used up.",
        "Use a smaller model, context or cache, end what else uses memory, or give the machine more.",
        source="torch 2.13 c10/core/impl/alloc_cpu.cpp; libstdc++; CPython 3.11; errno 12, Linux",
        # What else used it may be gone at the next try.
        permanent=False,
    ),
)

PYTORCH = (
    pattern(
        "driver_too_old",
        r"CUDA driver version is insufficient for CUDA runtime version|The NVIDIA driver on your system is too old"
        r"|system has unsupported display driver / cuda driver combination|forward compatibility was attempted on non",
        "The NVIDIA driver is older than the CUDA that this engine was built for.",
        "Update the driver (nvidia-smi shows the CUDA it is good for), or install a build of the engine for that CUDA.",
        source=f"{CUDA_ERRORS} 35, 803, 804; torch c10/cuda/CUDAFunctions.cpp",
    ),
    pattern(
        "gpu_unsupported",
        r"no kernel image is available for execution on the device"
        r"|is not compatible with the current PyTorch installation",
        "This build of the engine has no code for this GPU.",
        "Install a build for the GPU's compute capability: an older one for an old GPU, a newer one for a new GPU.",
        source=f"{CUDA_ERRORS} 209; torch 2.13 torch/cuda/__init__.py _check_capability",
    ),
    pattern(
        "no_gpu",
        r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device is detected"
        r"|Torch not compiled with CUDA enabled|invalid device ordinal|<CUDA> check failed|cuda is not available\."
        r"|Failed to infer device type",
        "The engine found no GPU that it may use.",
        "See nvidia-smi and CUDA_VISIBLE_DEVICES, and that the environment's torch was built with CUDA; in a container,"
        " give it the GPUs.",
        source=f"torch 2.13 torch/cuda/__init__.py _lazy_init; {CUDA_ERRORS} 100, 101; vLLM 0.32 vllm/config/device.py;"
        " LMDeploy 0.18 pytorch/check_env/cuda.py",
    ),
    pattern(
        "gpu_busy",
        r"all CUDA-capable devices are busy or unavailable",
        "Another process holds the GPU for itself.",
        "End it (see nvidia-smi), or set the compute mode back: nvidia-smi -c 0.",
        source=f"{CUDA_ERRORS} 46",
        permanent=False,
    ),
    pattern(
        "gpus_cannot_talk",
        r"(NCCL error|ncclSystemError|ncclInternalError|ncclUnhandledCudaError|ncclRemoteError)[: ,]*(?P<what>[^\n]*)",
        "The GPUs could not talk to one another (NCCL): {what}",
        "Set NCCL_DEBUG: INFO in the model's env for the cause; with GPUs that cannot reach each other directly,"
        " NCCL_P2P_DISABLE: 1; in a container, --ipc=host.",
        source="vLLM 0.32 vllm/distributed/device_communicators/pynccl_wrapper.py; torch NCCLUtils.cpp",
        permanent=False,
    ),
    pattern(
        "gpu_fault",
        r"CUDA error: (?P<what>an illegal memory access was encountered|unspecified launch failure"
        r"|device-side assert triggered|uncorrectable ECC error encountered|unknown error)",
        "The GPU reported a fault: {what}.",
        "It is tried again; if it comes back, look for Xid lines in dmesg, and try another engine or driver version.",
        source=f"{CUDA_ERRORS} 700, 719, 710, 214, 999",
        permanent=False,
    ),
    pattern(
        "repository_gated",
        r"You are trying to access a gated repo|Cannot access gated repo|is a gated repository|GatedRepoError",
        "The model's repository opens only to those who have accepted its terms.",
        "Accept them on its page and put HF_TOKEN into the model's env; or download it, and name the folder.",
        source="transformers 5.19 utils/hub.py; huggingface_hub errors.py GatedRepoError",
    ),
    pattern(
        "repository_missing",
        r"Repository Not Found for url|RepositoryNotFoundError|is not a valid model identifier",
        "The engine looked for a model repository that is not there, or not open to this machine.",
        "Correct the model's weights: the path of a folder on this machine.",
        source="huggingface_hub errors.py RepositoryNotFoundError; transformers 5.19 utils/hub.py",
    ),
    pattern(
        "download_failed",
        r"We couldn't connect to|Cannot find the requested files in the disk cache|OfflineModeIsEnabled"
        r"|There was a specific connection error",
        "The engine wanted to download a file that the weights do not hold, and could not.",
        "Complete the folder of the weights, or set HF_ENDPOINT in the model's env to a mirror that can be reached.",
        source="transformers 5.19 utils/hub.py; huggingface_hub errors.py LocalEntryNotFoundError",
        permanent=False,
    ),
    pattern(
        "weights_missing",
        r"Repo id must be|HFValidationError|does not appear to have a file named config\.json"
        r"|Error no file named (model\.safetensors|pytorch_model\.bin)",
        "There is no model at the given path.",
        "Correct the model's weights.",
        source="huggingface_hub HFValidationError, transformers 5.19 OSError, seen",
    ),
    pattern(
        "weights_unreadable",
        r"SafetensorError|Error while deserializing header|PytorchStreamReader failed|InvalidHeaderDeserialization",
        "A file of the weights is damaged or incomplete.",
        "Download it again, and compare its size: a file of a few hundred bytes is a Git LFS pointer, not weights.",
        source="safetensors 0.8 SafetensorError, seen; torch caffe2/serialize/inline_container.cc",
    ),
    pattern(
        "tokenizer_missing",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|sentencepiece or tiktoken installed"
        r"|requires the (SentencePiece|protobuf|tiktoken) library|`tiktoken` is required",
        "The tokenizer of the weights cannot be read.",
        "Put the model's tokenizer.json beside its weights, or install sentencepiece, protobuf and tiktoken into the"
        " engine's environment.",
        source="transformers 5.19 tokenization_utils_tokenizers.py, tokenization_utils_base.py, utils/import_utils.py",
    ),
    pattern(
        "code_not_trusted",
        r"contains custom code which must be executed|requires you to execute|is a custom model not yet available",
        "The weights bring Python code of their own, which no engine runs unasked.",
        "If you trust it, set options.trust_remote_code: true.",
        source="transformers 5.19 dynamic_module_utils.py; vLLM 0.32 vllm/transformers_utils/config.py",
    ),
    pattern(
        "architecture_unknown",
        r"Transformers does not recognize this architecture|Unrecognized (model|configuration class)",
        "The transformers library of this engine does not know the model's architecture.",
        "Use a newer version of the engine, or another engine.",
        source="transformers 5.19 models/auto/configuration_auto.py, auto_factory.py",
    ),
    pattern(
        "bad_option",
        r"error: (?P<message>(unrecognized arguments|argument|ambiguous option|the following arguments).*)",
        "The engine refused its command line: {message}.",
        "Correct the model's args or options.",
        source="argparse, exit code 2, seen with vLLM 0.32 and LMDeploy 0.18",
    ),
)
"""Of engines that compute with PyTorch and read weights with transformers: vLLM and LMDeploy."""
