"""Which provider runs a model, and which of its nodes the CPU runs all the same."""

from pathlib import Path

import graphs
import loops
import onnx
import pytest
from onnx import helper

from recurra.models import ModelConfig, ModelRefused, choose, load, provider, scanned, wanted
from recurra.models.graph import walk
from recurra.models.names import name_nodes
from recurra.models.placement import strays
from recurra.models.prepare import prepare
from recurra.models.provider import CPU, CUDA, TENSORRT, NoGpu, stack
from recurra.models.selftest import compare
from recurra.models.session import Assigned, Session

GPU = choose("auto").provider != "cpu"


def placed(model: graphs.ModelProto, where: str = CPU) -> list[Assigned]:
    """What the runtime tells of a session on the CPU, as if it had been one on a GPU."""
    return [Assigned(where, op, name) for _, op, name in Session(model.SerializeToString(), "cpu").assigned]


def test_the_cpu_is_chosen_where_it_is_asked_for():
    assert choose("cpu") == ("cpu", "it is asked for")


@pytest.mark.skipif(GPU, reason="there is a GPU")
@pytest.mark.parametrize("asked", ["cuda", "tensorrt"])
def test_a_listed_provider_that_runs_no_node_is_refused(asked: str):
    with pytest.raises(
        NoGpu, match=r"no GPU can be used \(.+\); it takes NVIDIA's driver .* and recurra\[server-gpu\].*, or use"
    ):
        choose(asked)


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_auto_says_why_it_chose_the_cpu():
    chosen, reason = choose("auto")
    assert chosen == "cpu"
    assert reason.startswith("no GPU can be used: ")
    assert len(reason) > len("no GPU can be used: ")


def test_a_provider_that_the_runtime_was_built_without_is_told():
    assert provider.failure("NoSuchExecutionProvider") == "this onnxruntime has no NoSuchExecutionProvider"


def test_the_places_in_the_runtimes_source_do_not_hide_what_it_says():
    """As it tells of a driver that is too old, and of TensorRT that is not installed."""
    call = "/src/cuda/cuda_call.cc:{} std::conditional_t<THRW, void> onnxruntime::CudaCall(ERRTYPE, int) "
    call += "[with ERRTYPE = cudaError; std::conditional_t<THRW, void> = void] "
    said = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    where = (
        " ; GPU=-1 ; hostname=h ; file=/src/cuda/cuda_execution_provider.cc ; line=355 ; expr=cudaSetDevice(id); \n\n"
    )
    plugins = "/src/python/state.cc:729 void onnxruntime::python::RegisterPlugins(Session&, const Options&) "
    for text, told in (
        (call.format(154) + call.format(146) + said + where, said),
        (plugins + "Please install TensorRT.\n", "Please install TensorRT."),
        ("(x) There is none ; here", "(x) There is none ; here"),
    ):
        assert provider._told(RuntimeError(text)) == told


def test_tf32_is_off_unless_the_model_asks_for_it():
    for asked, tf32 in ((False, "0"), (True, "1")):
        (name, options), last = stack("cuda", tf32=asked)
        assert (name, options["use_tf32"], options["cudnn_conv_algo_search"], last) == (CUDA, tf32, "HEURISTIC", CPU)
    assert [each if isinstance(each, str) else each[0] for each in stack("tensorrt")] == [TENSORRT, CUDA, CPU]
    assert stack("cpu", tf32=True) == [CPU]


def test_tensorrt_keeps_its_engines_and_is_told_sizes():
    (name, told), *_ = stack("tensorrt", profiles={"trt_profile_min_shapes": "x:1x1x3"})
    assert (name, told["trt_engine_cache_enable"], told["trt_timing_cache_enable"]) == (TENSORRT, "1", "1")
    assert told["trt_engine_cache_path"].endswith("recurra/tensorrt")
    assert "~" not in told["trt_engine_cache_path"]
    assert told["trt_profile_min_shapes"] == "x:1x1x3"


def test_rounded_products_are_compared_with_more_patience():
    ones, near = graphs.np.ones(3, "f4"), graphs.np.full(3, 1.001, "f4")
    assert not compare([near], [ones])[1]
    assert compare([near], [ones], exact=False)[1]
    assert not compare([ones * 1.1], [ones], exact=False)[1]
    assert Session(graphs.lstm().SerializeToString(), "cpu", tf32=True).exact


def test_a_model_names_its_provider(tmp_path: Path):
    folder = graphs.write(graphs.lstm(), tmp_path, toml='provider = "cpu"\ntf32 = true\n')
    assert wanted(folder, "cuda") == "cpu"
    assert load(folder, provider=wanted(folder, "cuda")).config == ModelConfig(provider="cpu", tf32=True)
    assert wanted(tmp_path, "cuda") == "cuda"
    (folder / "model.toml").write_text('provider = "gpu"')
    with pytest.raises(ModelRefused, match="provider = 'gpu': must be one of auto, cuda, tensorrt, cpu"):
        wanted(folder, "auto")


def test_a_model_on_the_cpu_has_no_strays(tmp_path: Path):
    assert load(graphs.write(graphs.lstm(), tmp_path), provider="cpu").strays == ()


@pytest.mark.parametrize(
    ("op", "settings", "why"),
    [
        ("GRU", {"linear_before_reset": 0}, "linear_before_reset = 0"),
        ("LSTM", {"clip": 0.5}, "clip"),
        ("LSTM", {"input_forget": 1}, "input_forget"),
        ("RNN", {"activations": ["Relu"]}, "activations other than tanh"),
    ],
)
def test_a_recurrent_node_on_the_cpu_is_told_with_what_cuda_lacks(op: str, settings: dict, why: str):
    built, _ = graphs.native(op, attributes=settings)
    assert [scanned.lack(node) for node in built.graph.node if node.op_type == op] == [why]
    first = strays(built.graph, placed(built))[0]
    assert not first.sizes
    assert [each.reason for each in strays(built.graph, placed(built)) if each.op == op] == [
        f"the CUDA provider has no kernel for it: {why}"
    ]


def test_what_works_on_sizes_is_told_apart_and_comes_last(tmp_path: Path):
    built, _ = loops.keras("GRU")
    prepare(built, ModelConfig(), tmp_path)
    found = strays(built.graph, placed(built))
    sizes = {each.op for each in found if each.sizes}
    assert {"Shape", "Less"} <= sizes
    assert not sizes & {"MatMul", "Gemm", "Sigmoid", "Tanh", "Loop"}
    assert [each.sizes for each in found] == sorted(each.sizes for each in found)
    assert strays(built.graph, placed(built, CUDA)) == ()


def test_a_node_that_the_graph_does_not_have_is_told_all_the_same():
    made = helper.make_graph([], "empty", [], [])
    (stray,) = strays(made, [Assigned(CPU, "MemcpyToHost", "added")])
    assert (stray.op, stray.name, stray.sizes) == ("MemcpyToHost", "added", False)


def test_what_the_runtime_added_to_sizes_is_no_computation():
    made = helper.make_graph([], "empty", [], [])
    (stray,) = strays(made, [Assigned(CPU, "Gather", "Gather_token_7")])
    assert stray.sizes


def test_sizes_are_followed_through_all_that_is_done_with_them():
    made = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Constant", [], ["zero"], value_int=0),
            helper.make_node("Gather", ["shape", "zero"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["whole"], to=6),
            helper.make_node("Unsqueeze", ["whole", "axes"], ["apart"]),
            helper.make_node("Concat", ["apart", "axes"], ["joined"], axis=0),
            helper.make_node("Mul", ["joined", "joined"], ["product"]),
            helper.make_node("Slice", ["product", "axes", "axes"], ["cut"]),
            helper.make_node("Squeeze", ["cut"], ["count"]),
            helper.make_node("Gather", ["x", "count"], ["y"]),
        ],
        "sizes",
        [],
        [],
        [helper.make_tensor("axes", 7, [1], [0])],
    )
    name_nodes(made)
    found = strays(made, [Assigned(CPU, node.op_type, node.name) for node in made.node])
    assert [stray.name for stray in found if not stray.sizes] == ["y"]


def test_of_nodes_with_one_name_the_one_that_computes_is_told():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="a"),
        helper.make_node("Identity", ["shape"], ["sizes"], name="b"),
        helper.make_node("Identity", ["x"], ["y"], name="b"),
    ]
    made = helper.make_graph(nodes, "twice", [], [])
    assert [stray.sizes for stray in strays(made, [Assigned(CPU, "Identity", "b"), Assigned(CPU, "Shape", "a")])] == [
        False,
        True,
    ]


def test_every_node_that_is_served_has_a_name(tmp_path: Path):
    for number, built in enumerate((graphs.lstm(), graphs.native("GRU", attributes={"linear_before_reset": 0})[0])):
        served = prepare(built, ModelConfig(), tmp_path, gpu=number == 1).content
        assert all(node.name for node in walk(onnx.load_model_from_string(served).graph))
