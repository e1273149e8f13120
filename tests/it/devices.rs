//! Where models run: the choice, and what is said when it cannot be met.

use refrain::Refrain;

use crate::support::rows;

const QUERY: &str = "select ai_sentiment('A wonderful film, moving and beautifully acted.', model => 'mini')";
const DEVICE: &str = "select device from ai_models() where name = 'mini'";

#[tokio::test]
async fn a_gpu_that_is_named_and_not_there_is_an_error_and_another_choice_mends_it() {
    let db = Refrain::builder().setting("device", "cuda:4096").build().await.unwrap();
    let error = rows(&db, QUERY).await.unwrap_err().to_string();
    assert!(error.contains("device cuda:4096 cannot be used") && error.contains("no GPU"), "{error}");
    assert!(db.device().contains("device cuda:4096 cannot be used"), "{}", db.device());
    rows(&db, "set refrain.device = 'cpu'").await.unwrap();
    assert_eq!(rows(&db, QUERY).await.unwrap(), ["positive"]);
    let device = rows(&db, DEVICE).await.unwrap();
    assert!(device[0].starts_with("cpu, ") && !device[0].contains("no GPU"), "{device:?}");
    let error = rows(&db, "set refrain.device = 'tpu'").await.unwrap_err().to_string();
    assert!(error.contains("refrain.device: a device is auto, cpu, cuda, cuda:1, cuda:all or cuda:tp"), "{error}");
}

#[tokio::test]
async fn without_a_gpu_the_cpu_says_why() {
    let db = Refrain::builder().build().await.unwrap();
    let expected = db.device();
    assert!(rows(&db, QUERY).await.is_ok());
    let device = rows(&db, DEVICE).await.unwrap();
    assert_eq!(expected, format!("device: {}", device[0]));
    assert!(device[0].starts_with("cuda:0, ") || device[0].contains("no GPU"), "{device:?}");
}

#[tokio::test]
async fn a_model_that_is_to_be_kept_as_gpus_do_is_refused_by_the_cpu() {
    let db = Refrain::builder().setting("device", "cpu").build().await.unwrap();
    rows(&db, "create model eight from 'random:mini' with (dtype = 'fp8')").await.unwrap();
    assert_eq!(rows(&db, "select dtype from ai_models() where name = 'eight'").await.unwrap(), ["fp8"]);
    let error = rows(&db, "select ai_filter('Is it?', 'a', model => 'eight')").await.unwrap_err().to_string();
    assert!(error.contains("option dtype = 'fp8' is for GPUs") && error.contains("refrain.device"), "{error}");
    let error = rows(&db, "create model nine from 'random:mini' with (dtype = 'int4')").await.unwrap_err().to_string();
    assert!(error.contains("expected bf16, fp8 or f32"), "{error}");
}
