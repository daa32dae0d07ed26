"""The effect of a wrong chat template, shown: one fine-tune, raw on each engine and through Unigate."""
