"""Faults that are planted in copies of the CUDA sources, each with the report that has to find it."""

from __future__ import annotations

from dataclasses import dataclass

from support.cuda_emulation import Change

CLUSTER, STAGED, REDUCE = "cuda/memory/cluster.cuh", "cuda/memory/staged.cuh", "cuda/memory/reduce.cuh"
PLACE, KERNEL, LAUNCH = "cuda/memory/place.cuh", "cuda/loss/kernel.cuh", "cuda/loss/launch.cuh"


@dataclass(frozen=True)
class PlantedFault:
    name: str
    changes: tuple[Change, ...]
    report: str  # a pattern in the report; alternatives where the schedule decides which comes first

    def __str__(self) -> str:
        return self.name


UNORDERED = r"races with the write before it"
EARLY = r"into which a copy is in flight|without a wait for the copy that filled it"

FAULTS = [
    PlantedFault(
        "waits for the other parity",
        ((CLUSTER, "done, [%0], 0;", "done, [%0], 1;"),),
        rf"{EARLY}|deadlock",
    ),
    PlantedFault(
        "mbarrier expects two arrivals",
        ((CLUSTER, "mbarrier.init.shared::cta.b64 [%0], 1;", "mbarrier.init.shared::cta.b64 [%0], 2;"),),
        r"deadlock.* lacks 1 arrivals and 0 bytes",
    ),
    PlantedFault(
        "no fence after the initialisation",
        ((CLUSTER, 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', ""),),
        r"no fence has shown to the copy engine",
    ),
    PlantedFault(
        "relaxed arrival at the cluster's barrier",
        ((CLUSTER, "barrier.cluster.arrive.release.aligned", "barrier.cluster.arrive.relaxed.aligned"),),
        rf"of_rank, which {UNORDERED}",
    ),
    PlantedFault(
        "remote store to the own block",
        ((CLUSTER, "st.shared::cluster.u32 [remote], %2;", "st.shared::cluster.u32 [%0], %2;"),),
        rf"of_rank, which ({UNORDERED}|nobody has written)",
    ),
    PlantedFault(
        "copies half of the bytes",
        ((CLUSTER, '"r"(bytes), "r"(shared', '"r"(bytes / 2), "r"(shared'),),
        r"no multiple of 16|deadlock.* lacks 0 arrivals and [1-9]",
    ),
    PlantedFault(
        "no handshake before the first remote store",
        (
            (
                STAGED,
                "if (exchanges_ == 0) cluster_wait();",
                "if (exchanges_ == 0 && size_ == 1) cluster_wait();",
            ),
            (STAGED, "    cluster_arrive();  // this", "    if (size_ == 1) cluster_arrive();  // this"),
        ),
        r"a remote store into a block that may not have started",
    ),
    PlantedFault(
        "only the first and the last warp wait for copies",
        (
            (
                STAGED,
                "    await_arrival(stage_arrivals() + stage);",
                "    if (threadIdx.x < 32 || threadIdx.x + 32 >= blockDim.x) "
                "await_arrival(stage_arrivals() + stage);",
            ),
        ),
        EARLY,
    ),
    PlantedFault(
        "waits for the last stage only",
        (
            (
                STAGED,
                "await_arrival(stage_arrivals() + stage);",
                "if (stage == 0) await_arrival(stage_arrivals() + kStages - 1);",
            ),
        ),
        EARLY,
    ),
    PlantedFault(
        "remote store behind the last barrier",
        (
            (
                KERNEL,
                "  write_gradients(row, index, coefficient);\n}",
                "  write_gradients(row, index, coefficient);\n  row.place.say_bye();\n}",
            ),
            (
                STAGED,
                "  __device__ __forceinline__ int stages()",
                "  __device__ void say_bye() const {\n"
                "    __shared__ uint32_t done[kMaxCluster];\n"
                "    if (threadIdx.x == 0 && rank_ != 0) store_remote(&done[rank_], 0, 1);\n"
                "  }\n"
                "  __device__ __forceinline__ int stages()",
            ),
        ),
        r"a block can exit before a remote store or|a block that has exited",
    ),
    PlantedFault(
        "no block barrier when a row is opened",
        ((STAGED, "    __syncthreads();   // the arrivals", "    // the arrivals"),),
        r"not ordered after its initialisation|nobody has initialised|which nobody has written",
    ),
    PlantedFault(
        "writes the row's edges behind the block barrier",
        (
            (STAGED, "    __syncthreads();   // the arrivals", "    // the arrivals"),
            (
                STAGED,
                "    // The group that contains",
                "    __syncthreads();\n    // The group that contains",
            ),
        ),
        r"dynamic shared memory .*, which nobody has written|is wrong",
    ),
    PlantedFault(
        "reads the label's logit after the exchange",
        (
            (
                KERNEL,
                "  float loss = normalise(",
                "  if (row.label_column >= 0) found.label_s = row.label_logit(row.call.student, index) - "
                "(row.lowered ? origin().s : 0.0f);\n  float loss = normalise(",
            ),
        ),
        r"is wrong",
    ),
    PlantedFault(
        "copies the last group where it is not whole",
        (
            (
                STAGED,
                "min(end, (vocab - first) / kGroup)",
                "min(end, (vocab - first + kGroup - 1) / kGroup)",
            ),
        ),
        r"a read outside of the tensors' rows",
    ),
    PlantedFault(
        "no barrier between writing and reading of_warp",
        ((REDUCE, "= x[i];\n  }\n  __syncthreads();", "= x[i];\n  }"),),
        rf"of_warp, which ({UNORDERED}|nobody has written)",
    ),
    PlantedFault(
        "no wait in the last exchange",
        (
            (
                STAGED,
                "      cluster_wait();\n      const unsigned from",
                "      if (kCount <= 2) cluster_wait();\n      const unsigned from",
            ),
        ),
        rf"of_rank, which ({UNORDERED}|nobody has written)|exits between barrier.cluster.arrive",
    ),
    PlantedFault(
        "expects a copy that it does not start",
        ((STAGED, "if (bytes == 0) continue;", "if (bytes == 0 || stage + 1 == kStages) continue;"),),
        r"deadlock.* lacks 0 arrivals and [1-9]",
    ),
    PlantedFault(
        "no request for more than 48 KiB",
        (
            (
                LAUNCH,
                "MaxDynamicSharedMemorySize, static_cast<int>(device_.per_block)",
                "MaxDynamicSharedMemorySize, 48 * 1024",
            ),
        ),
        r"the launch fails: invalid argument",
    ),
    PlantedFault(
        "one buffer for all exchanges",
        ((STAGED, "of_rank[exchanges_ % 2];", "of_rank[0];"),),
        r"of_rank, which races with a read of the value before it",
    ),
    PlantedFault(
        "arrives twice",
        (
            (
                STAGED,
                "      cluster_arrive();\n      cluster_wait();",
                "      cluster_arrive();\n      cluster_arrive();",
            ),
        ),
        r"barrier.cluster.arrive twice, without a wait",
    ),
    PlantedFault(
        "only one block arrives at the handshake",
        ((STAGED, "    cluster_arrive();  // this", "    if (rank_ == 0) cluster_arrive();  // this"),),
        r"barrier.cluster.wait without an arrive",
    ),
    PlantedFault(
        "a warp that leaves out a block barrier",
        ((REDUCE, "  __syncthreads();  // before", "  if (warp > 0) __syncthreads();  // before"),),
        r"deadlock|of_warp, which races",
    ),
    PlantedFault(
        "requests too little shared memory",
        ((LAUNCH, "dynamicSmemBytes = shape.bytes;", "dynamicSmemBytes = shape.bytes / 2;"),),
        r"beyond the dynamic shared memory|behind the dynamic shared memory",
    ),
    PlantedFault(
        "copies to an address that is not aligned",
        ((STAGED, "bulk_copy(shared + offset, ", "bulk_copy(shared + offset + 4, "),),
        r"no multiple of 16",
    ),
    PlantedFault(
        "copies both sides to one place",
        ((STAGED, "bulk_copy(shared + side + offset, ", "bulk_copy(shared + offset, "),),
        r"a copy to dynamic shared memory .*, into which a copy is in flight",
    ),
    PlantedFault(
        "no wait for the copies",
        (
            (
                STAGED,
                "    await_arrival(stage_arrivals() + stage);\n    return stage_end(stage, begin, end);",
                "    return begin;",
            ),
        ),
        EARLY,
    ),
    PlantedFault(
        "an instruction that the emulation does not know",
        ((CLUSTER, "fence.proxy.async.shared::cta;", "fence.proxy.async.global;"),),
        r"a PTX instruction that the emulation does not know: fence.proxy.async.global",
    ),
    PlantedFault(
        "maps an address to a block that is not there",
        ((CLUSTER, "mapa.shared::cluster.u32 remote, %0, %1;", "mapa.shared::cluster.u32 remote, %0, 16;"),),
        r"mapa with a rank that is not in the cluster",
    ),
]
