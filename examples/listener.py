from cdm import Artifact, Router, SliceKey, SliceState, SliceValue, ValuePut, node_id, receiver


class Agent:
    @receiver
    def on_slice(self, put: ValuePut[SliceKey, SliceValue]) -> None:
        if put.value.state is SliceState.LOAD:
            print("load", put.key)


router = Router(receivers=[Agent()], sends=[ValuePut[SliceKey, SliceValue]])
key = SliceKey(node_id("node-1"), Artifact.parse("org.example:slice:1.0.0"))
router.route(ValuePut(key, SliceValue(SliceState.LOAD), revision=1))
