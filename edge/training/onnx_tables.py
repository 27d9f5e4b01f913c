"""What ONNX's messages hold (onnx.proto3, field by field), and which ops a plan may use, by domain."""

from fleetgrad.edge.training.protobuf import Field, Table


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


OPS: dict[str, frozenset[str]] = {
    # ONNX's own, whatever the user's model computes with, but for those that take texts and encoded images.
    "": _ops("""
        Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
        Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike
        CausalConvWithState Ceil Celu CenterCropPad Clip Col2Im Compress Concat ConcatFromSequence Constant
        ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv DepthToSpace
        DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU
        Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
        GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
        InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log
        LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean
        MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Multinomial Neg NegativeLogLikelihoodLoss
        NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement OptionalHasElement Or PRelu Pad Pow QLinearConv
        QLinearMatMul QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike
        Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT
        Scan Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase
        SequenceInsert SequenceLength SequenceMap Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
        SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze
        Sub Sum SwiGLU Swish Tan Tanh TensorScatter ThresholdedRelu Tile
        TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
    """),
    "ai.onnx.ml": _ops("""
        ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder
        LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble
        TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
    """),
    "ai.onnx.preview.training": frozenset(["Adagrad", "Adam", "Gradient", "Momentum"]),
    # The C core's (docs/native-ops.md): an op that is new there is new here.
    "fleetgrad": _ops("""
        AveragePoolGrad BatchNorm BatchNormGrad ClipGrad ConvWeightGrad DepthwiseConv DepthwiseConvInputGrad
        DepthwiseConvWeightGrad EmbeddingGrad GRUGrad GRUTrain LSTMGrad LSTMTrain MatMulWeightGrad MaxPool
        MaxPoolArgmaxGrad MaxPoolGrad QuantizeColumns ReluGrad SoftmaxCrossEntropy SparseEmbeddingGrad
    """),
}
OPS["ai.onnx"] = OPS[""]

STRING = 8
ITEM_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8,
    21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
# Which types of tensor may have their data in which field, other than raw_data.
TYPED = {
    "float_data": {1}, "int32_data": {2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26}, "string_data": {STRING},
    "int64_data": {7}, "double_data": {11}, "uint64_data": {12, 13},
}  # fmt: skip
# The field of an attribute's value, by its type.
VALUES = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs"}


def _many(name: str) -> Field:
    return Field(name, repeated=True)


def _int(name: str) -> Field:
    return Field(name, "varint")


MODEL: Table = {
    1: _int("ir_version"), 2: Field("producer_name"), 3: Field("producer_version"), 4: Field("domain"), 5: _int("model_version"),
    6: Field("doc_string"), 7: Field("graph"), 8: _many("opset_import"), 14: _many("metadata_props"), 20: _many("training_info"),
    25: _many("functions"), 26: _many("configuration"),
}  # fmt: skip
OPSET_ID: Table = {1: Field("domain"), 2: _int("version")}
GRAPH: Table = {
    1: _many("node"), 2: Field("name"), 5: _many("initializer"), 10: Field("doc_string"), 11: _many("input"), 12: _many("output"),
    13: _many("value_info"), 14: _many("quantization_annotation"), 15: _many("sparse_initializer"), 16: _many("metadata_props"),
}  # fmt: skip
NODE: Table = {
    1: _many("input"), 2: _many("output"), 3: Field("name"), 4: Field("op_type"), 5: _many("attribute"), 6: Field("doc_string"),
    7: Field("domain"), 8: Field("overload"), 9: _many("metadata_props"), 10: _many("device_configurations"),
}  # fmt: skip
ATTRIBUTE: Table = {
    1: Field("name"), 2: Field("f", "fixed32"), 3: _int("i"), 4: Field("s"), 5: Field("t"), 6: Field("g"),
    7: Field("floats", "fixed32", True), 8: Field("ints", "varint", True), 9: _many("strings"), 10: _many("tensors"),
    11: _many("graphs"), 13: Field("doc_string"), 14: Field("tp"), 15: _many("type_protos"), 20: _int("type"),
    21: Field("ref_attr_name"), 22: Field("sparse_tensor"), 23: _many("sparse_tensors"),
}  # fmt: skip
TENSOR: Table = {
    1: Field("dims", "varint", True), 2: _int("data_type"), 3: Field("segment"), 4: Field("float_data", "fixed32", True),
    5: Field("int32_data", "varint", True), 6: _many("string_data"), 7: Field("int64_data", "varint", True), 8: Field("name"),
    9: Field("raw_data"), 10: Field("double_data", "fixed64", True), 11: Field("uint64_data", "varint", True),
    12: Field("doc_string"), 13: _many("external_data"), 14: _int("data_location"), 16: _many("metadata_props"),
}  # fmt: skip
ENTRY: Table = {1: Field("key"), 2: Field("value")}
VALUE: Table = {1: Field("name"), 2: Field("type"), 3: Field("doc_string"), 4: _many("metadata_props")}
TYPE: Table = {
    1: Field("tensor_type"), 4: Field("sequence_type"), 5: Field("map_type"), 6: Field("denotation"), 8: Field("sparse_tensor_type"),
    9: Field("optional_type"),
}  # fmt: skip
TENSOR_TYPE: Table = {1: _int("elem_type"), 2: Field("shape")}
SHAPE: Table = {1: _many("dim")}
DIMENSION: Table = {1: _int("dim_value"), 2: Field("dim_param"), 3: Field("denotation")}
FUNCTION: Table = {
    1: Field("name"), 4: _many("input"), 5: _many("output"), 6: _many("attribute"), 7: _many("node"), 8: Field("doc_string"),
    9: _many("opset_import"), 10: Field("domain"), 11: _many("attribute_proto"), 12: _many("value_info"), 13: Field("overload"),
    14: _many("metadata_props"),
}  # fmt: skip
