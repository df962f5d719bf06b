"""How good a retriever is: trec_eval's measures, DPR's answer accuracy, runs on disk, paired significance."""
