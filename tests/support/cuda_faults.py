"""Faults that are planted in copies of the CUDA sources, each with the report that has to find it."""

from __future__ import annotations

from dataclasses import dataclass

from support.cuda_emulation import Change

CLUSTER, STAGED = "cuda/memory/cluster.cuh", "cuda/memory/staged.cuh"
KERNEL, LAUNCH = "cuda/loss/kernel.cuh", "cuda/loss/launch.cuh"
ROW, SUMS = "cuda/loss/row.cuh", "cuda/loss/sweep2_sums.cuh"


@dataclass(frozen=True)
class PlantedFault:
    name: str
    changes: tuple[Change, ...]
    report: str  # a pattern in the report; alternatives where the schedule decides which comes first

    def __str__(self) -> str:
        return self.name


UNORDERED = r"races with the write before it"
READ = r"races with a read of the value before it"
EARLY = r"into which a copy is in flight|without a wait for the copy that filled it"

FAULTS = [
    PlantedFault(
        "waits for the other parity",
        ((STAGED, "+ stage, progress_.rows - 1);", "+ stage, progress_.rows);"),),
        rf"{EARLY}|deadlock",
    ),
    PlantedFault(
        "waits for the first row's copies in each row",
        ((STAGED, "+ stage, progress_.rows - 1);", "+ stage, 0);"),),
        rf"{EARLY}|is wrong|more arrivals at an mbarrier|deadlock",
    ),
    PlantedFault(
        "mbarrier expects two arrivals",
        ((STAGED, "begin_arrival(arrivals + i, 1);", "begin_arrival(arrivals + i, 2);"),),
        r"deadlock.* lacks 1 arrivals and 0 bytes",
    ),
    PlantedFault(
        "no fence after the initialisation",
        (
            (
                CLUSTER,
                'fence_copies();\n  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");',
                "",
            ),
        ),
        r"no fence has shown to the copy engine|not ordered after its initialisation",
    ),
    PlantedFault(
        "no fence for the other blocks",
        ((CLUSTER, 'asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");', ""),),
        r"not ordered after its initialisation",
    ),
    PlantedFault(
        "relaxed arrival at the cluster's barrier before the end",
        ((CLUSTER, "barrier.cluster.arrive.release.aligned", "barrier.cluster.arrive.relaxed.aligned"),),
        r"a block can exit before a remote store or arrival",
    ),
    PlantedFault(
        "no barrier of the cluster before the end",
        ((STAGED, "if (progress.rows > 0) cluster_arrive(), cluster_wait();", ""),),
        r"a block (can exit|exits|that has exited)",
    ),
    PlantedFault(
        "sends to the own block",
        ((CLUSTER, "v4.b32 [place],", "v4.b32 [%0],"),),
        r"whose mbarrier is not in the block that it writes to",
    ),
    PlantedFault(
        "counts at the own block",
        ((CLUSTER, '"[signal]; }"', '"[%1]; }"'),),
        r"whose mbarrier is not in the block that it writes to",
    ),
    PlantedFault(
        "waits for packets in the block's scope",
        (
            (
                CLUSTER,
                "mbarrier.try_wait.parity.acquire.cluster.shared::cta",
                "mbarrier.try_wait.parity.shared::cta",
            ),
        ),
        r"a wait of the block's scope for what other blocks have sent",
    ),
    PlantedFault(
        "expects the bytes of fewer packets",
        ((STAGED, "packets.count * kVectors", "(packets.count - 1) * kVectors"),),
        EARLY,
    ),
    PlantedFault(
        "waits for the packets of the first exchange only",
        (
            (
                STAGED,
                "    await_cluster(arrival, phase);",
                "    if (progress_.exchanges == 0) await_cluster(arrival, phase);",
            ),
        ),
        rf"{EARLY}|dynamic shared memory .*, which nobody has written",
    ),
    PlantedFault(
        "waits for the first phase in each exchange",
        ((STAGED, "await_cluster(arrival, phase);", "await_cluster(arrival, 0 * phase);"),),
        rf"{EARLY}|{READ}",
    ),
    PlantedFault(
        "uses a buffer again without a wait",
        ((STAGED, "if (phase > 0) await_cluster(arrival + kBuffers, phase - 1);", ""),),
        rf"a copy to dynamic shared memory .*, which ({READ}|{UNORDERED})|into which a copy is in flight",
    ),
    PlantedFault(
        "releases a buffer before the block's barrier",
        (
            (
                KERNEL,
                "  __syncthreads();\n  row.place.release();",
                "  row.place.release();\n  __syncthreads();",
            ),
        ),
        rf"a copy to dynamic shared memory .*, which {READ}|into which a copy is in flight",
    ),
    PlantedFault(
        "does not release a buffer",
        ((KERNEL, "  row.place.release();\n", ""),),
        r"deadlock",
    ),
    PlantedFault(
        "copies into a stage that warps still read",
        ((STAGED, "    __syncthreads();\n    // `volatile`", "    // `volatile`"),),
        rf"a copy to dynamic shared memory .*, which ({READ}|{UNORDERED})|into which a copy is in flight"
        r"|more arrivals at an mbarrier|is wrong",
    ),
    PlantedFault(
        "no fence between the logarithms and the next row's copies",
        ((SUMS, "if (row.call.keeps_logs) row.place.show_writes();", ""),),
        r"which a thread has written without a fence before the copy",
    ),
    PlantedFault(
        "fetches a row that does not run",
        (
            (
                KERNEL,
                "runs = candidate < row.call.rows && fate_of<Context>(row.call, candidate) == Fate::kRuns",
                "runs = candidate < row.call.rows",
            ),
        ),
        r"more arrivals at an mbarrier|copy (into it )?is in flight|exits while a copy|can exit before a copy"
        r"|is wrong",
    ),
    PlantedFault(
        "fetches each row again when it is opened",
        (
            (
                STAGED,
                "if (fetches() && progress_.rows == 0) {\n      begin_arrivals();",
                "if (fetches()) {\n      if (progress_.rows == 0) begin_arrivals();",
            ),
        ),
        r"more arrivals at an mbarrier|into which a copy is in flight|deadlock",
    ),
    PlantedFault(
        "looks for the next row among too few",
        ((KERNEL, "candidate < row.call.rows && fate", "lane < 1 && candidate < row.call.rows && fate"),),
        r"deadlock",
    ),
    PlantedFault(
        "places the teacher's side anew for each row",
        ((STAGED, "student.group(most_)", "student.group(end - begin)"),),
        rf"{READ}|{UNORDERED}|a copy (into it )?is in flight|nobody has written|is wrong",
    ),
    PlantedFault(
        "all warps send to one place",
        ((STAGED, "(rank_ * warps + warp) * kVectors", "(rank_ * warps + 0 * warp) * kVectors"),),
        r"into which a copy is in flight|which races|nobody has written",
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
                "if (progress_.exchanges == 0) cluster_wait();",
                "if (progress_.exchanges == 0 && size_ == 1) cluster_wait();",
            ),
            (
                STAGED,
                "rows == 0) cluster_arrive",
                "rows == 0 && size_ == 1) cluster_arrive",
            ),
        ),
        r"a block that may not have started|not ordered after its initialisation",
    ),
    PlantedFault(
        "only the first and the last warp wait for copies",
        (
            (
                STAGED,
                "    await_copies(arrivals_of_block() + stage, progress_.rows - 1);",
                "    if (threadIdx.x < 32 || threadIdx.x + 32 >= blockDim.x) "
                "await_copies(arrivals_of_block() + stage, progress_.rows - 1);",
            ),
        ),
        EARLY,
    ),
    PlantedFault(
        "waits for the last stage only",
        (
            (
                STAGED,
                "await_copies(arrivals_of_block() + stage, progress_.rows - 1);",
                "if (stage == 0) await_copies(arrivals_of_block() + kStages - 1, progress_.rows - 1);",
            ),
        ),
        EARLY,
    ),
    PlantedFault(
        "sends behind the last exchange",
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
                "    const uint4 bye = make_uint4(1, 1, 1, 1);\n"
                "    Arrival* const arrival = arrivals_of_block() + kStages;\n"
                "    if (threadIdx.x == 0 && rank_ != 0) send(packets_of(0), 0, bye, arrival);\n"
                "  }\n"
                "  __device__ __forceinline__ int stages()",
            ),
        ),
        rf"a block (can exit|exits|that has exited)|{READ}|{UNORDERED}",
    ),
    PlantedFault(
        "no block barrier when a row is opened",
        ((STAGED, "    __syncthreads();  // the arrivals", "    // the arrivals"),),
        r"not ordered after its initialisation|nobody has initialised|which nobody has written",
    ),
    PlantedFault(
        "writes the row's edges behind the block barrier",
        (
            (STAGED, "    __syncthreads();  // the arrivals", "    // the arrivals"),
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
                "    loss = normalise(",
                "    if (row.label_column >= 0) found.label_s = "
                "row_of<typename Context::Element>(call.student, index)[row.label_column] - "
                "(row.lowered ? origin().s : 0.0f);\n    loss = normalise(",
            ),
        ),
        r"is wrong",
    ),
    PlantedFault(
        "copies the last group where it is not whole",
        (
            (
                STAGED,
                "min(end, (vocab - pair.first) / kGroup)",
                "min(end, (vocab - pair.first + kGroup - 1) / kGroup)",
            ),
        ),
        r"a read outside of the tensors' rows",
    ),
    PlantedFault(
        "no barrier between writing and reading a row's numbers",
        ((KERNEL, "  __syncthreads();\n  row.place.release();", "  row.place.release();"),),
        rf"published, which ({UNORDERED}|nobody has written)",
    ),
    PlantedFault(
        "one memory for all numbers of a row",
        (
            (
                KERNEL,
                "// Lets the block's first warp",
                "template <int kVectors>\nuint4* one_place() {\n  __shared__ uint4 published[kVectors];\n"
                "  return published;\n}\n// Lets the block's first warp",
            ),
            (
                KERNEL,
                "__shared__ uint4 published[kPacketVectors<kWords>];",
                "uint4* const published = one_place<kPacketVectors<kWords>>();",
            ),
        ),
        rf"published, which {READ}",
    ),
    PlantedFault(
        "keeps logarithms in the place of the next group",
        (
            (
                ROW,
                "teacher.bits(column)) + i / 4 * side",
                "teacher.bits(column)) + kVectorBytes + i / 4 * side",
            ),
        ),
        rf"{READ}|{UNORDERED}|behind the dynamic shared memory|is wrong",
    ),
    PlantedFault(
        "no room for the logarithms",
        ((LAUNCH, "with_logs.group_bytes = Context::kGroup * (bytes + 4);", ""),),
        r"behind the dynamic shared memory",
    ),
    PlantedFault(
        "keeps logarithms where the teacher's gradient needs its logits",
        ((LAUNCH, "if (!Context::kKeeps || call.grad_teacher.data) return", "if (!Context::kKeeps) return"),),
        r"the teacher's gradient of row . is wrong",
    ),
    PlantedFault(
        "expects a copy that it does not start",
        ((STAGED, "if (groups == 0) return;", "if (groups == 0 || stage + 1 == kStages) return;"),),
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
        (
            (
                STAGED,
                "buffer = progress_.exchanges % kBuffers, phase = progress_.exchanges / kBuffers;",
                "buffer = 0, phase = progress_.exchanges;",
            ),
        ),
        rf"a copy to dynamic shared memory .*, which ({READ}|{UNORDERED})|into which a copy is in flight"
        r"|deadlock|more arrivals at an mbarrier",
    ),
    PlantedFault(
        "arrives twice",
        ((STAGED, "cluster_arrive(), cluster_wait();", "cluster_arrive(), cluster_arrive();"),),
        r"barrier.cluster.arrive twice, without a wait",
    ),
    PlantedFault(
        "only one block arrives at the handshake",
        (
            (
                STAGED,
                "rows == 0) cluster_arrive",
                "rows == 0 && rank_ == 0) cluster_arrive",
            ),
        ),
        r"barrier.cluster.wait without an arrive",
    ),
    PlantedFault(
        "a warp that leaves out a block barrier",
        (
            (
                KERNEL,
                "  __syncthreads();\n  row.place.release();",
                "  if (threadIdx.x >= kWarp) __syncthreads();\n  row.place.release();",
            ),
        ),
        rf"deadlock|published, which ({UNORDERED}|nobody has written)",
    ),
    PlantedFault(
        "requests too little shared memory",
        ((LAUNCH, "dynamicSmemBytes = shape.bytes;", "dynamicSmemBytes = shape.bytes / 2;"),),
        r"beyond the dynamic shared memory|behind the dynamic shared memory",
    ),
    PlantedFault(
        "copies to an address that is not aligned",
        ((STAGED, "bulk_copy(student.group(from),", "bulk_copy(student.group(from) + 4,"),),
        r"no multiple of 16",
    ),
    PlantedFault(
        "copies both sides to one place",
        ((STAGED, "bulk_copy(teacher.group(from)", "bulk_copy(student.group(from)"),),
        r"a copy to dynamic shared memory .*, into which a copy is in flight",
    ),
    PlantedFault(
        "the student's bytes for a teacher of another dtype",
        ((STAGED, "of_t = kTeacher ? teacher.group", "of_t = kTeacher ? student.group"),),
        r"is wrong|nobody has written|a read outside of the tensors' rows|(behind|beyond) the dynamic",
    ),
    PlantedFault(
        "the student's dtype for a teacher of another one",
        ((STAGED, "teacher = StagedView<E>::of(pair.teacher,", "teacher = StagedView<E>::of(pair.student,"),),
        r"is wrong|nobody has written|(behind|beyond) the dynamic",
    ),
    PlantedFault(
        "no wait for the copies",
        (
            (
                STAGED,
                "    await_copies(arrivals_of_block() + stage, progress_.rows - 1);\n    return stage_end",
                "    return stage_end",
            ),
        ),
        rf"{EARLY}|is wrong",
    ),
    PlantedFault(
        "an instruction that the emulation does not know",
        ((CLUSTER, "fence.proxy.async.shared::cta;", "fence.proxy.async.global;"),),
        r"a PTX instruction that the emulation does not know: fence.proxy.async.global",
    ),
    PlantedFault(
        "maps an address to a block that is not there",
        ((CLUSTER, "mapa.shared::cluster.u32 place, %0, %2;", "mapa.shared::cluster.u32 place, %0, 16;"),),
        r"mapa with a rank that is not in the cluster",
    ),
]
