"""An old address: activations in S3 were read by pickle, and are not read here."""

from dictionary_learning.compat._gone import (
    ActivaultS3ActivationBuffer as ActivaultS3ActivationBuffer,
    S3RCache as S3RCache,
    create_s3_client as create_s3_client,
)
